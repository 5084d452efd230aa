"""What a run shows in Weights & Biases (the package wandb, which is optional): the numbers and pictures of its board.

A run keeps its id there in its folder, so that carrying on adds to the same curves. Like a board it is worth no run:
what cannot be sent is said once, and left out. Without a network `WANDB_MODE=offline` in the environment keeps all of
it in the folder, for `wandb sync`.
"""

import importlib
import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from jaxtyping import UInt8

from unclip_jax.core.extras import needs
from unclip_jax.core.typing import JsonDict
from unclip_jax.training.config import RunConfig
from unclip_jax.training.workdir import is_remote, open_folder

ID_FILE = "wandb_id"


class WandbSink:
    """A run of the project `run.wandb`.

    Raises UserError where wandb is not installed.
    """

    def __init__(self, run: RunConfig):
        with needs("wandb"):
            self._wandb: Any = importlib.import_module("wandb")
        self._run: Any = None
        workdir = open_folder(run.workdir)
        with self._giving_up():
            self._run = self._wandb.init(
                project=run.wandb,
                id=_id(run),
                name="/".join(workdir.parts[-2:]),
                resume="allow",
                dir=None if is_remote(workdir) else str(workdir),
                config=_config(run),
            )

    def scalar(self, name: str, value: float, step: int) -> None:
        """Show a number."""
        self._log({name: value}, step)

    def image(self, name: str, image: UInt8[np.ndarray, "h w 3"], step: int) -> None:
        """Show an image."""
        self._log({name: self._wandb.Image(image)}, step)

    def close(self) -> None:
        """Send what is left."""
        if self._run is not None:
            with self._giving_up():
                self._run.finish()

    def _log(self, values: dict[str, Any], step: int) -> None:
        if self._run is not None:
            with self._giving_up():
                self._run.log(values, step=step)

    @contextmanager
    def _giving_up(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # it has errors of its own: no key, no network, no such project
            print(f"wandb fails ({type(error).__name__}: {error}); it gets no more of this run", flush=True)
            self._run = None


def _id(run: RunConfig) -> str:
    """Return the id that the folder has, or give it one."""
    path = open_folder(run.workdir) / ID_FILE
    if not path.exists():
        path.write_text(secrets.token_hex(8))
    return path.read_text().strip()


def _config(run: RunConfig) -> JsonDict | None:
    """Return the run's whole config, if it has been written already."""
    path = open_folder(run.workdir) / "config.json"
    return json.loads(path.read_text()) if path.exists() else None
