"""Running commands in this process."""

import contextlib
import io
import os
import sys
from types import ModuleType
from typing import NamedTuple
from unittest import mock

import numpy as np
from PIL import Image

from sample import again
from unclip_jax.core.errors import run_cli
from unclip_jax.images.png import read_text


class Result(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str


def call(command: ModuleType, *words) -> Result:
    """Runs a command's `main` with these words on its command line."""
    out, err = io.StringIO(), io.StringIO()
    argv = [command.__name__, *map(str, words)]
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(sys, "argv", argv))
        stack.enter_context(mock.patch.dict(os.environ, UNCLIP_JAX_NO_CACHE="1"))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        status = 0
        try:
            run_cli(command.main)
        except SystemExit as end:
            status = end.code
    return Result(status, out.getvalue(), err.getvalue())


def assert_one_line(result: Result, line: str) -> None:
    """The command ended as one does that a person has misused."""
    assert (result.status, result.out) == (2, "")
    # `sample.again` first says what it reads elsewhere.
    (said,) = [each for each in result.err.splitlines() if not each.startswith("reads ")]
    assert line in said and said.startswith("error: ")


def pixels(path) -> np.ndarray:
    """Of an image file."""
    with Image.open(path) as image:
        return np.array(image)


def assert_drawn_again(path) -> None:
    """`sample.again` draws the same pixels, which say the same of themselves."""
    copy = path.with_name(f"{path.stem}_again.png")
    result = call(again, path)
    assert result.status == 0 and result.out.splitlines()[-1] == str(copy), result.err
    np.testing.assert_array_equal(pixels(copy), pixels(path))
    differing = {name for name, value in read_text(copy).items() if read_text(path)[name] != value}
    # The options name the other file.
    assert differing == {"again"}
    copy.unlink()


def tiles(sheet: np.ndarray, side: int) -> np.ndarray:
    """The images of a sheet, [rows columns side side 3]."""
    step = side + 2
    rows, columns = (sheet.shape[0] + 2) // step, (sheet.shape[1] + 2) // step
    return np.stack(
        [
            np.stack([sheet[r * step : r * step + side, c * step : c * step + side] for c in range(columns)])
            for r in range(rows)
        ]
    )
