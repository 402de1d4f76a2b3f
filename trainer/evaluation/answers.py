"""What an engine answered -> a record.

    TECA_i = (1/(i+1)) sum_{j<=i} H_j      (cer_ext.teca)

Token texts are what each token adds to the text: tokens that end in the middle of a character add nothing and the one
that completes it adds it all, and a tokenizer that puts spaces between words gives the space to the word that follows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

import cer_ext
from trainer.evaluation.requests import Response
from trainer.grading import extract_answer, grade
from trainer.records.record_files import Record, rounded

_LONGEST_CHARACTER = 4  # tokens, if each is one byte of UTF-8
_INCOMPLETE = "\ufffd"  # what a decoder writes for bytes that are no character (yet)


def token_texts(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> list[str]:
    """One text per token; joined they are the decoded response, special tokens included."""

    def decode(first: int, last: int) -> str:
        return tokenizer.decode(token_ids[first:last], skip_special_tokens=False, clean_up_tokenization_spaces=False)

    texts = []
    context = shown = 0  # tokens from `context` are decoded together; those before `shown` have given their text
    for end in range(1, len(token_ids) + 1):
        text = decode(context, end)
        if text.endswith(_INCOMPLETE) and end - shown < _LONGEST_CHARACTER and end < len(token_ids):
            texts.append("")
            continue
        texts.append(text[len(decode(context, shown)) :])
        context, shown = shown, end
    return texts


def make_record(
    tokenizer: PreTrainedTokenizerBase,
    response: Response,
    *,
    identity: str,
    benchmark: str,
    method: str,
    sample: int,
    question: str,
    ground_truth: str,
    prompt: str,
    text: str | None = None,
) -> Record:
    """The record of one response (see records.py); `text` if it was given rather than generated.

    Raises ValueError if an entropy is not finite: the model's logits were NaN or infinite.
    """
    entropies = torch.tensor(response.entropies, dtype=torch.float64)  # (L,)
    if len(entropies) != len(response.token_ids):
        raise RuntimeError(f"{identity}, sample {sample}: {len(entropies)} entropies, {len(response.token_ids)} tokens")
    if not bool(entropies.isfinite().all()):
        first = int((~entropies.isfinite()).nonzero()[0])
        raise ValueError(
            f"id {identity!r}, sample {sample}: the entropy of response token {first} is {entropies[first].item()}; "
            "the model's logits there are NaN or infinite (a broken checkpoint, or float16 that overflows)"
        )
    if text is None:
        text = tokenizer.decode(response.token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    exits = {} if response.exit_at is None else {"early_exit": response.exit_at}
    return {
        "id": identity,
        "benchmark": benchmark,
        "method": method,
        "sample": sample,
        "question": question,
        "ground_truth": ground_truth,
        "prompt": prompt,
        "response": text,
        "extracted_answer": extract_answer(text),
        "is_correct": bool(grade(text, ground_truth)),
        "response_length": len(response.token_ids),
        "finish_reason": response.finish_reason,
        "tokens": token_texts(tokenizer, response.token_ids),
        "token_ids": list(response.token_ids),
        "token_entropies": rounded(response.entropies),
        "teca": rounded(cer_ext.teca(entropies[None])[0].tolist()) if len(entropies) else [],
        **exits,
    }
