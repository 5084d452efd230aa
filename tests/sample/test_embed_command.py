import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sample import embed
from tests import tiny
from unclip_jax.core.errors import run_cli
from unclip_jax.systems.system import run as run_system

pytestmark = pytest.mark.usefixtures("quick_compile")
CAPTIONS = ["a red circle", "a blue square above a green star", "two rings"]


@pytest.fixture
def run(monkeypatch, tiny_folder, capsys):
    monkeypatch.setenv("UNCLIP_JAX_NO_CACHE", "1")

    def run(*words) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["embed", *map(str, words), "--bundle", str(tiny_folder)])
        try:
            run_cli(embed.main)
        except SystemExit as end:
            return end.code, *capsys.readouterr()
        return 0, *capsys.readouterr()

    return run


@pytest.mark.slow
def test_embeddings_are_those_that_text_to_image_decodes(run, tmp_path):
    (tmp_path / "prompts.txt").write_text("\n".join(CAPTIONS))
    out = tmp_path / "made" / "z.npz"
    words = ["--prompts", tmp_path / "prompts.txt", "--seed", 4, "--out", out, "--batch-size", 2]
    assert run(*words)[:2] == (0, f"{out}\n")
    with np.load(out, allow_pickle=False) as file:
        assert file["prompts"].tolist() == CAPTIONS
        z_i = file["z_i"]
    encoded = tiny.tokenizer().encode(CAPTIONS, tiny.CONTEXT)
    inputs = {"tokens": jnp.asarray(encoded.tokens), "mask": jnp.asarray(encoded.mask)}
    drawn = next(run_system(tiny.system(), inputs, jax.random.key(4)))
    assert drawn.stage == "prior"
    np.testing.assert_allclose(z_i, drawn.value, atol=1e-5)
    again = [CAPTIONS[0], "--out", out, "--prior.steps", 2]
    status, _, err = run(*again)
    assert status == 2 and f"{out} is already there; give another --out, or replace it with --overwrite" in err
    assert run(*again, "--overwrite")[0] == 0
    assert np.abs(np.load(out)["z_i"][0] - z_i[0]).max() > 1e-3


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "give a prompt"),
        ([""], "the prompt is empty"),
        (["a", "--out", "x.png"], "x.png does not end in .npz"),
        (["a", "--prior.steps", "0"], "prior: steps is 0"),
        (["a", "--batch-size", "0"], "batch_size is 0"),
    ],
)
def test_mistakes(run, words, line):
    status, out, err = run(*words)
    assert (status, out) == (2, "") and line in err and err.count("\n") == 1
