"""What a run shows in TensorBoard: an event file in its folder, written at once.

tensorboardX's own writer leaves that to a thread, which ends in a traceback where the disk is full, and whoever goes on
then waits for it for ever. A board is worth no run: what cannot be written is said once, and left out.
"""

import contextlib
import importlib
import socket
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import UInt8

from unclip_jax.training.config import RunConfig
from unclip_jax.training.workdir import open_folder

FLUSH_EVERY = 120
"""Seconds between writes to the disk or the bucket."""


def open_board(run: RunConfig, start_step: int) -> "Board | None":
    """Open the board of a run that goes on after `start_step`; None, and a line, where its package is missing."""
    folder, needed = str(open_folder(run.workdir) / "tensorboard"), "tensorboardX"
    try:
        importlib.import_module("tensorboardX")
        if folder.startswith("gs://"):
            needed = "google-cloud-storage"
            importlib.import_module("google.cloud.storage")
    except ImportError:
        print(f"{needed} is not installed: metrics go to metrics.jsonl and the console only", flush=True)
        return None
    return Board(folder, start_step)


class Board:
    """An event file in `folder`, which may be in a bucket."""

    def __init__(self, folder: str, start_step: int):
        from tensorboardX import record_writer

        # What protobuf makes of its descriptions has no types.
        self._events: Any = importlib.import_module("tensorboardX.proto.event_pb2")
        self._folder = folder
        self._file: Any = None
        self._flushed = time.monotonic()
        with self._giving_up():
            record_writer.directory_check(folder)
            name = f"{folder}/events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
            self._file = record_writer.RecordWriter(name)
        log = self._events.SessionLog
        self._write(file_version="brain.Event:2")
        # What was shown of later steps is no longer true.
        self._write(step=start_step + 1, file_version="brain.Event:2")
        self._write(step=start_step + 1, session_log=log(status=log.START))

    def scalar(self, name: str, value: float, step: int) -> None:
        """Show a number."""
        from tensorboardX import summary

        self._write(step=step, summary=summary.scalar(name, value))

    def image(self, name: str, image: UInt8[np.ndarray, "h w 3"], step: int) -> None:
        """Show an image."""
        from tensorboardX import summary

        self._write(step=step, summary=summary.image(name, image, dataformats="HWC"))

    def close(self) -> None:
        """Write what is left."""
        if self._file is not None:
            with self._giving_up():
                self._file.flush()
            with contextlib.suppress(Exception):
                self._file.close()

    def _write(self, **event: Any) -> None:
        if self._file is None:
            return
        with self._giving_up():
            self._file.write(self._events.Event(wall_time=time.time(), **event).SerializeToString())
            if time.monotonic() - self._flushed >= FLUSH_EVERY:
                self._file.flush()
                self._flushed = time.monotonic()

    @contextlib.contextmanager
    def _giving_up(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a bucket's client has errors of its own
            reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
            print(f"{self._folder} cannot be written ({reason}); TensorBoard gets no more of it", flush=True)
            file, self._file = self._file, None
            with contextlib.suppress(Exception):
                file.close()
