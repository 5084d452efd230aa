"""Captions to the arrays `tokens` and `mask`."""

import contextlib
import sys
import warnings
from collections.abc import Iterator, Sequence

from unclip_jax.core.errors import UserError
from unclip_jax.systems.system import System
from unclip_jax.text.tokenizer import Encoded

MAX_CHARACTERS = 1 << 14


class TruncationWarning(UserWarning):
    """A prompt is longer than the context, and what was cut of it."""


def encode_captions(system: System, captions: Sequence[str]) -> Encoded:
    """Encode captions to tokens and masks, cut where they are too long; UserError for a bundle that reads none."""
    if system.tokenizer is None:
        raise UserError(f"bundle {system.name} has no tokenizer; use one that reads captions")
    longest = max(map(len, captions), default=0)
    if longest > MAX_CHARACTERS:
        raise UserError(f"a caption has {longest:,} characters; give at most {MAX_CHARACTERS:,}")
    return system.tokenizer.encode(list(captions), system.encoder("clip").clip.text_tower.context)


def encode_prompts(system: System, prompts: Sequence[str]) -> Encoded:
    """Encode prompts as `encode_captions`, and warn of what is cut.

    Raises UserError for an empty prompt. Warns `TruncationWarning` for every distinct one that is cut.
    """
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise UserError("the prompt is empty; say what to draw")
    encoded = encode_captions(system, prompts)
    for prompt, cut in dict(zip(prompts, encoded.truncated, strict=True)).items():
        if cut is not None:
            message = f"the prompt {prompt!r} is too long; this was cut: {cut!r}"
            warnings.warn(message, TruncationWarning, stacklevel=3)
    return encoded


@contextlib.contextmanager
def report_truncation() -> Iterator[None]:
    """Print on stderr, one line each, which prompts were too long and what was cut of them."""
    with warnings.catch_warnings(record=True, action="always", category=TruncationWarning) as cut:
        yield
    for warning in cut:
        print(f"warning: {warning.message}", file=sys.stderr)
