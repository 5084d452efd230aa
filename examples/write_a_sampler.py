"""Write a sampler: the second-order Adams-Bashforth method, in thirty lines, next to Euler's on the shipped decoder.

python examples/write_a_sampler.py
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import unclip_jax
from unclip_jax.diffusion import DDIM, sample
from unclip_jax.diffusion.samplers.sampler import OneEvaluation
from unclip_jax.stages import Options


class Carry(NamedTuple):
    """What it keeps from step to step."""

    x: jax.Array
    before: jax.Array
    """The x_0 of the step before."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamsBashforth(OneEvaluation):
    """DDIM's step, from x_0 carried on along the line through the last two: x_0 + r (x_0 - x_0 before) / 2."""

    steps: int
    is_stochastic = False

    def coefficients(self, process):
        """DDIM's, and r, this step's length in log signal-to-noise over the last one's; 0 where there is none."""
        with np.errstate(divide="ignore", invalid="ignore"):
            lengths = np.diff(np.log(process.snr)) / 2
            ratio = np.append(np.append(0.0, lengths[:-1] / lengths[1:]), 0.0)[: self.steps]
        ratio[~np.isfinite(ratio)] = 0.0
        return DDIM(steps=self.steps).coefficients(process) | {"ratio": ratio}

    def start(self, x_T):
        """Nothing comes before the first step, whose ratio is 0."""
        return Carry(x_T, jnp.zeros_like(x_T))

    def update(self, carry, prediction, row, noise):
        """One step."""
        x_0 = prediction.x_0 + row["ratio"] * (prediction.x_0 - carry.before) / 2
        return Carry(row["x_0"] * x_0 + row["x_t"] * carry.x, prediction.x_0)


def main(steps: int = 8, accurate: int = 60) -> dict[str, float]:
    """Return how far each sampler's embeddings are, in so few steps, from those of many steps of DDIM."""
    system = unclip_jax.load("demo")
    stage, captions = system.stage("prior"), ["a red circle above a blue square", "a yellow ring"]
    inputs = {name: jnp.asarray(array) for name, array in unclip_jax.editing.tokenise(system, captions).items()}
    noise = stage.noise(jax.random.key(0), jnp.arange(len(captions)), unclip_jax.SamplingSettings())

    def draw(sampler):
        options = Options(settings=unclip_jax.SamplingSettings(steps=sampler.steps))
        problem = stage.problem(options, system.weights("prior"), inputs)
        fixed = {"shape": problem.shape, "threshold": problem.threshold}
        run = jax.jit(lambda: sample(problem.process, problem.model_fn, problem.cond, sampler, noise, **fixed))
        return np.asarray(run())

    expected = draw(DDIM(steps=accurate))
    samplers = {"DDIM": DDIM(steps=steps), "Adams-Bashforth": AdamsBashforth(steps=steps)}
    errors = {name: float(np.sqrt(np.mean((draw(sampler) - expected) ** 2))) for name, sampler in samplers.items()}
    for name, error in errors.items():
        print(f"{name}, {steps} steps: {error:.4f} from {accurate} steps of DDIM")
    return errors


if __name__ == "__main__":
    main()
