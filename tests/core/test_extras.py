import pytest

from unclip_jax.core.errors import UserError
from unclip_jax.core.extras import needs


def test_what_is_there_is_imported():
    with needs("train"):
        import json
    assert json.loads("1") == 1


def test_what_is_missing_is_one_line():
    line = r"^this needs the package no_such_package, which is not installed; run pip install 'unclip_jax\[train\]'$"
    with pytest.raises(UserError, match=line), needs("train"):
        import no_such_package.inside  # noqa: F401  # pyright: ignore[reportMissingImports]


@pytest.mark.parametrize("error", [ModuleNotFoundError("x", name="unclip_jax.lost"), ModuleNotFoundError("x")])
def test_a_mistake_of_ours_stays_one(error):
    with pytest.raises(ModuleNotFoundError), needs("train"):
        raise error
