"""Tokenizers made on the spot: nothing is downloaded and nothing is trained.

    word_tokenizer()   one token per word of trainer/tiny/problems.py and per number 0-24
    byte_tokenizer()   one token per byte, for any text (the smoke recipe on real GSM8K questions)

Both are ordinary transformers tokenizers with a chat template, and pad on the left, as generation needs. (A tokenizer
that is saved and loaded again pads on the right until told otherwise: `load_tokenizer` tells it.)
"""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from trainer.tiny import problems

PAD, END, UNKNOWN = "<|pad|>", "<|end|>", "<|unknown|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")

# {sep} is a space where words are split at spaces, nothing where every byte counts.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|' + message['role'] + '|>' + sep + message['content'] + sep + '<|end|>' + sep }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)


def _wrap(backend: Tokenizer, separator: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        padding_side="left",
        chat_template="{%- set sep = '" + separator + "' -%}" + CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word and per number: a vocabulary of about 130."""
    words = [PAD, END, UNKNOWN, *ROLES, *(str(n) for n in range(problems.LARGEST_NUMBER + 1)), *problems.FIXED_WORDS]
    words += [*problems.NAMES, *problems.THINGS, *problems.GAINS, *problems.LOSSES]
    words += [word for slot in problems.OPENER for word in slot]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens([PAD, END, UNKNOWN, *ROLES])
    return _wrap(backend, " ")


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte: a vocabulary of 262 that writes any text."""
    words = [PAD, END, UNKNOWN, *ROLES, *sorted(ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, merges=[]))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([PAD, END, UNKNOWN, *ROLES])
    return _wrap(backend, "")


def load_tokenizer(path: str | Path, **kwargs) -> PreTrainedTokenizerBase:
    """AutoTokenizer.from_pretrained, padding on the left whatever the file says."""
    return AutoTokenizer.from_pretrained(str(path), padding_side="left", truncation_side="left", **kwargs)
