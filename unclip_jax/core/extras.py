"""Packages that only some of the work needs, and that `pip install unclip_jax` alone leaves out."""

import contextlib
from collections.abc import Iterator

from unclip_jax.core.errors import UserError


@contextlib.contextmanager
def needs(extra: str) -> Iterator[None]:
    """Around the imports of packages that `extra` of pyproject.toml has.

    Raises:
        UserError: one of them is not installed; it says what to install.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", __name__.partition(".")[0]):
            raise
        line = f"this needs the package {package}, which is not installed; run pip install 'unclip_jax[{extra}]'"
        raise UserError(line) from error
