"""Which prompts of a batch have images: a processor takes a batch of which all have, or none has.

In: rows of a data set, or prompts as messages whose content is parts. Out: rows that TRL reads as text alone where no
row has an image, and an error where some have.
"""

from __future__ import annotations

from typing import Any


def without_absent_images(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows; where `images` or `image` is empty in every one of them, without that column."""
    empty = [name for name in ("images", "image") if name in rows[0] and not any(_some(row.get(name)) for row in rows)]
    return [{name: row[name] for name in row if name not in empty} for row in rows] if empty else rows


def _some(images: Any) -> bool:
    return images is not None and not (isinstance(images, list) and not images)


def require_no_mixture(prompts: list) -> None:
    """Raises ValueError where some prompts of a batch have images and some have none.

    TRL hands None to the processor for those without, which fails in transformers' `fetch_images`, after all
    completions have been made.
    """
    with_images = [_has_image(prompt) for prompt in prompts]
    if all(with_images) or not any(with_images):
        return
    row = with_images.index(False)
    raise ValueError(
        f"{with_images.count(False)} of {len(prompts)} prompts of this batch have no image (the first is row {row}: "
        f"{_text(prompts[row])[:80]!r}), and a processor takes a batch of which all have images, or "
        "none has: give every row an image, or train the rows without one apart"
    )


def _parts(prompt: Any) -> list[dict[str, Any]]:
    """The parts of all contents of a prompt; a plain text has none."""
    contents = [message.get("content") for message in prompt] if isinstance(prompt, list) else []
    return [part for content in contents if isinstance(content, list) for part in content]


def _has_image(prompt: Any) -> bool:
    return any(part.get("type") == "image" for part in _parts(prompt))


def _text(prompt: Any) -> str:
    return " ".join(part["text"] for part in _parts(prompt) if part.get("type") == "text")
