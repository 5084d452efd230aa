import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.core.errors import UserError
from unclip_jax.diffusion import TapeNoise
from unclip_jax.sampling import read_tape, write_tape


@pytest.mark.parametrize("num_steps", [4, 0])
@pytest.mark.parametrize("shape", [(2, 3), (2, 4, 4, 3)])
def test_what_is_written_is_read(tmp_path, shape, num_steps):
    values = np.random.default_rng(0).normal(size=(1 + num_steps, *shape)).astype(np.float32)
    tape = TapeNoise(x_T=jnp.asarray(values[0]), steps=jnp.asarray(values[1:]))
    write_tape(tmp_path / "tape.npz", tape)
    found = read_tape(tmp_path / "tape.npz")
    np.testing.assert_array_equal(found.x_T, tape.x_T)
    np.testing.assert_array_equal(found.steps, tape.steps)
    assert found.steps.shape == tape.steps.shape


@pytest.mark.parametrize(
    "arrays, line",
    [
        ({"steps": np.zeros((2, 3, 4))}, "has no x_T, only steps"),
        ({"x_T": np.zeros((3, 4)), "steps": np.zeros((2, 3, 5))}, r"steps is .*\(2, 3, 5\); .*\(steps, b, 4\)"),
        ({"x_T": np.zeros((3, 4)), "steps": np.zeros((2, 9, 4))}, r"steps is .*\(2, 9, 4\); .*\(steps, b, 4\)"),
        ({"x_T": np.zeros((3, 4)), "steps": np.zeros(2)}, r"steps is .*\(2\); .*\(steps, b, 4\)"),
        ({"x_T": np.zeros(())}, r"x_T is .*\(\); .*\(b\)"),
        ({"x_T": np.full((3, 4), np.nan)}, "not finite"),
        ({"x_T": np.array([{}])}, "numbers or texts"),
    ],
    ids=["no start", "other axes", "other batch", "too few axes", "a number", "nan", "pickled"],
)
def test_what_is_no_tape_gets_a_line(tmp_path, arrays, line):
    np.savez(tmp_path / "tape.npz", **arrays)
    with pytest.raises(UserError, match=line):
        read_tape(tmp_path / "tape.npz")
