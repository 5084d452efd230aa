"""Orbax without the tracebacks that it prints of failures which it also raises."""

import contextlib
import gc
import logging
import sys
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def orbax_muted() -> Iterator[None]:
    """Keep Orbax from printing tracebacks of a failure that it also raises: the one line made of it is enough."""
    _mute_leftovers()
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]

    def is_not_orbax(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return "orbax" not in record.pathname and "orbax" not in message and "tensorstore" not in message

    for logger in loggers:
        logger.addFilter(is_not_orbax)
    try:
        yield
    finally:
        # The tasks left over warn when they are collected.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "coroutine '.*' was never awaited", RuntimeWarning)
            gc.collect()
        for logger in loggers:
            logger.removeFilter(is_not_orbax)


def _mute_leftovers() -> None:
    """Keep quiet, for good, about reads and writes that end after the first of them failed, when their event loop is
    gone, or never end: tensorstore's threads may be late."""
    hook = sys.unraisablehook
    if getattr(hook, "is_ours", False):
        return

    def unraisable(problem) -> None:
        code = getattr(problem.object, "cr_code", None)
        is_orbax = code is not None and "orbax" in code.co_filename
        if not is_orbax and str(problem.exc_value) != "Event loop is closed":
            hook(problem)

    unraisable.is_ours = True  # pyright: ignore[reportFunctionMemberAccess]
    sys.unraisablehook = unraisable
