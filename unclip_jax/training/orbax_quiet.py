"""Orbax without the tracebacks that it prints of failures which it also raises."""

import contextlib
import gc
import logging
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def orbax_muted() -> Iterator[None]:
    """Keep Orbax from printing tracebacks of a failure that it also raises: the one line made of it is enough."""
    hook, loggers = sys.unraisablehook, [logging.getLogger(name) for name in ("absl", "asyncio")]

    def is_not_orbax(record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname and "orbax" not in record.getMessage()

    def unraisable(problem) -> None:
        # Reads and writes that end after the first of them failed find their event loop gone.
        if str(problem.exc_value) != "Event loop is closed":
            hook(problem)

    sys.unraisablehook = unraisable
    for logger in loggers:
        logger.addFilter(is_not_orbax)
    try:
        yield
    finally:
        # The tasks left over warn when they are collected.
        gc.collect()
        sys.unraisablehook = hook
        for logger in loggers:
            logger.removeFilter(is_not_orbax)
