"""Orbax without the tracebacks that it prints of failures which it also raises."""

import contextlib
import gc
import logging
import sys
import warnings
from collections.abc import Iterator
from types import TracebackType


@contextlib.contextmanager
def orbax_muted() -> Iterator[None]:
    """Keep Orbax from printing tracebacks of a failure that it also raises: the one line made of it is enough."""
    hook, printed = sys.unraisablehook, sys.excepthook
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]

    def is_not_orbax(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return "orbax" not in record.pathname and "orbax" not in message and "tensorstore" not in message

    def unraisable(problem) -> None:
        # Reads and writes that end after the first of them failed find their event loop gone, or are never ended.
        code = getattr(problem.object, "cr_code", None)
        is_orbax = code is not None and "orbax" in code.co_filename
        if not is_orbax and str(problem.exc_value) != "Event loop is closed":
            hook(problem)

    def uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        # So tensorstore prints what it cannot raise.
        if str(error) != "Event loop is closed":
            printed(kind, error, trace)

    sys.unraisablehook, sys.excepthook = unraisable, uncaught
    for logger in loggers:
        logger.addFilter(is_not_orbax)
    try:
        yield
    finally:
        # The tasks left over warn when they are collected.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "coroutine '.*' was never awaited", RuntimeWarning)
            gc.collect()
        sys.unraisablehook, sys.excepthook = hook, printed
        for logger in loggers:
            logger.removeFilter(is_not_orbax)
