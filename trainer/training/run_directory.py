"""An output directory belongs to one process at a time, and holds the checkpoints of one run.

In: an output directory, and whether a run starts there or resumes. Out: the directory locked, without files of another
run that this one could overwrite or take for its own.

    run.lock        held (flock) by the process that writes here; it says which. The kernel frees it with the process
    run.json        {"run": id} of the run that writes here, and what it resumed from; the same in every checkpoint
    older-runs/     what was set aside: the files of earlier runs, each under its id

A run's id is made when it starts and kept when it resumes. Checkpoints of stock TRL have none.
"""

import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from trainer.storage.atomic import write_json

LOCK_FILE = "run.lock"
RUN_FILE = "run.json"
OLDER = "older-runs"
MADE_BY_A_RUN = (
    "checkpoint-*",
    "final",
    "log.jsonl",
    "samples.jsonl",
    "result.json",
    "responses.jsonl",
    "runs",
    "prompt.json",
    RUN_FILE,
)


class DirectoryInUse(ValueError):
    """Another process, or another run, has the directory; the message says who, and the ways out."""


def new_run_id() -> str:
    """When, and four random bytes: ids sort by time and do not collide."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}"


@contextmanager
def locked(output_dir: str | Path, command: str) -> Iterator[None]:
    """The directory is this process's until the end of the block.

    Raises:
        DirectoryInUse: a live process has it.
    """
    path = Path(output_dir) / LOCK_FILE
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise DirectoryInUse(
                f"output_dir {output_dir} is in use by {file.read().strip() or 'another process'}: take another "
                "--output_dir, or wait until it has ended"
            ) from None
        except OSError as error:  # a file system without locks
            print(f"output_dir {output_dir} can't be locked ({error.strerror}): start no second run in it")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%F %T')}: {command}\n")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def numbered_checkpoints(output_dir: str | Path) -> list[tuple[int, Path]]:
    """(step, directory) of everything there that is called a checkpoint and holds a file, oldest step first."""
    found = []
    for path in Path(output_dir).glob("checkpoint-*"):
        step = path.name.removeprefix("checkpoint-")
        if step.isdigit() and path.is_dir() and any(path.iterdir()):
            found.append((int(step), path))
    return sorted(found)


def run_of(directory: str | Path) -> str | None:
    """The id of the run that made a checkpoint, or that writes in an output directory; None where none is written."""
    return _read(directory).get("run")


def settings_of(checkpoint: str | Path) -> dict | None:
    """The settings that a checkpoint was made with; None where none are written."""
    return _read(checkpoint).get("settings")


def _read(directory: str | Path) -> dict:
    try:
        content = json.loads((Path(directory) / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_run(directory: str | Path, run: str, **more) -> None:
    """run.json of a checkpoint (with its settings) or of an output directory (with what the run resumed from)."""
    write_json(Path(directory) / RUN_FILE, {"run": run, **more})


def belongs_to(checkpoint: Path, run: str, went_on_from: Path | None) -> bool:
    """Whether a checkpoint is a run's own: made by it, or the one that it resumed from."""
    return run_of(checkpoint) == run or (
        went_on_from is not None and checkpoint.resolve() == Path(went_on_from).resolve()
    )


def newest_run(output_dir: str | Path) -> tuple[str | None, Path | None]:
    """(id, what it resumed from) of the run that last wrote in a directory."""
    content = _read(output_dir)
    origin = content.get("went_on_from")
    return content.get("run"), Path(origin) if origin else None


def set_later_aside(output_dir: str | Path, resume: Path) -> str | None:
    """Moves checkpoints later than the one a run resumes from: it will use their names again. Returns a note."""
    step = resume.name.removeprefix("checkpoint-")
    if resume.parent.resolve() != Path(output_dir).resolve() or not step.isdigit():
        return None
    later = [path for number, path in numbered_checkpoints(output_dir) if number > int(step)]
    return _move(Path(output_dir), later, run_of(resume)) if later else None


def make_room(
    output_dir: str | Path,
    *,
    set_aside: bool,
    runs: Sequence[str] = (".",),
    made: Sequence[str] = MADE_BY_A_RUN,
) -> str | None:
    """Set aside what another run left, so that a new run starts in an empty directory.

    A finished model without checkpoints is set aside; checkpoints are set aside only if that was asked for.

    Args:
        output_dir: where the run writes.
        set_aside: whether that was asked for.
        runs: the directories in there with checkpoints; an experiment has one a reward.
        made: patterns of what is moved.

    Returns:
        What was moved, for the person; None where there was nothing to do.

    Raises:
        DirectoryInUse: there are another run's checkpoints.
    """
    output_dir = Path(output_dir)
    present = [entry for run in runs for entry in numbered_checkpoints(output_dir / run)]
    if present and not set_aside:
        step, newest = max(present)
        raise DirectoryInUse(
            f"output_dir {output_dir} holds the checkpoints of another run ({run_of(newest) or 'of unknown id'}, up to "
            f"step {step}). Go on with that run: --resume_from_checkpoint last. Or start a new one: in another "
            f"--output_dir, or with --set_aside_older_run true, which moves the older one to {output_dir / OLDER}"
        )
    if not present and not any((output_dir / run / "final").exists() for run in runs):
        return None
    paths = [path for pattern in made for path in sorted(output_dir.glob(pattern))]
    return _move(output_dir, paths, next((id for run in runs if (id := run_of(output_dir / run))), None))


def _move(output_dir: Path, paths: list[Path], run: str | None) -> str:
    """Moves files and directories to older-runs/<run>; says so."""
    number, name = 1, run or "unknown"
    while (target := output_dir / OLDER / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    target.mkdir(parents=True)
    for path in paths:
        path.rename(target / path.name)
    return f"Set aside in {target}: {', '.join(path.name for path in paths)}"
