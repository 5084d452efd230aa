"""Prompts of a command line, or of a file."""

from pathlib import Path

from unclip_jax.core.errors import UserError
from unclip_jax.core.reading import MIB, read_text

MAX_PROMPT_BYTES = 16 * MIB


def read_prompts(prompt: str | None, file: Path | None) -> list[str]:
    """The prompt, or the non-empty lines of the file, or one empty prompt."""
    if (prompt is None) == (file is None):
        raise UserError('give a prompt, as in "a red circle", or a file of them with --prompts')
    if file is None:
        lines = [prompt or ""]
    else:
        try:
            lines = read_text(file, MAX_PROMPT_BYTES, "utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {file}: {error}; give a UTF-8 text file") from error
    return [line.strip() for line in lines if line.strip()] or [""]
