"""A tokenizer in CLIP's format, small enough to make on the spot."""

import json
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel

CONTEXT = 77
WORDS = ("red", "green", "blue", "circle", "square", "above", "below", "left", "right", "the", "photo", "of")


def write_clip_tokenizer(folder: Path, pad_token: str = "!") -> int:
    """vocab.json, merges.txt and tokenizer_config.json; returns the size of the vocabulary.

    Its alphabet begins with "!", which Karlo pads with, as CLIP's does; end-of-text comes last.
    """
    alphabet = ["!", *sorted(set(ByteLevel.alphabet()) - {"!"})]
    tokens, merges = [*alphabet, *(f"{letter}</w>" for letter in alphabet)], []
    for word in WORDS:
        left = word[0]
        for i, letter in enumerate(word[1:], 1):
            right = letter if i < len(word) - 1 else f"{letter}</w>"
            if (pair := f"{left} {right}") not in merges:
                merges.append(pair)
            left += right
            if left not in tokens:
                tokens.append(left)
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    config = special | {"pad_token": pad_token, "model_max_length": CONTEXT, "tokenizer_class": "CLIPTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return len(tokens)
