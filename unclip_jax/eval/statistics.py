"""Statistics of a bundle on images with captions, kept in its folder: what probing and the sampler "analytic" need.

    python -m unclip_jax.eval.statistics BUNDLE --data FOLDER [--examples 2048]

    basis          principal components of z_i (`unclip_jax.editing.probing`)
    x0_variance    of the prior, where there is one (`unclip_jax.diffusion.samplers.analytic`, equation 3)

The folder is replaced whole, weights as they were, and its hash changes with what it holds.
"""

import dataclasses
import functools
import sys
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Float

from unclip_jax.bundle import store
from unclip_jax.bundle.parts import Bundle
from unclip_jax.conditioning import prior_cond
from unclip_jax.core import command_line, compilation_cache
from unclip_jax.core.errors import UserError, run_cli
from unclip_jax.data.pipeline import BatchSpec, batches
from unclip_jax.data.sources import open_source
from unclip_jax.diffusion.gaussian import ProcessSpec
from unclip_jax.diffusion.noise import KeyNoise
from unclip_jax.diffusion.samplers import X0Variance, squared_errors
from unclip_jax.editing.points import embed_images
from unclip_jax.editing.probing import fit_basis
from unclip_jax.images.pixels import to_float
from unclip_jax.models import prior
from unclip_jax.models.clip import CLIPSpec
from unclip_jax.models.prior import PriorSpec
from unclip_jax.stages.settings import StageSettings

LEVELS = 50
"""Noise levels at which the prior is measured."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Measure a bundle on images with captions, and write what was found into it."""

    bundle: tyro.conf.Positional[str]
    """A bundle's folder, which is changed."""
    data: str = "captioned_shapes"
    """A folder of images with captions, or the data set of shapes."""
    data_dir: str = "data"
    """Where the data set of shapes is, or is made."""
    examples: int = 2048
    """Images to measure."""
    components: int | None = None
    """Principal components to keep; all of them by default."""
    batch_size: int = 64
    """Images at once."""
    seed: int = 0
    """Of the order and the noise."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.examples < self.batch_size:
            found = f"{self.examples} examples in batches of {self.batch_size}"
            raise UserError(f"{found}; give a batch of 1 or more, and at least as many examples")


def measure(bundle: Bundle, options: Options) -> tuple[Float[np.ndarray, "n d"], X0Variance | None]:
    """z_i of all examples, and the prior's statistics."""
    spec = cast(CLIPSpec, bundle.part("clip").spec)
    size = spec.image_tower.image_size
    if bundle.tokenizer is None:
        raise UserError(f"bundle {bundle.name} has no tokenizer; use one that reads captions")
    context = spec.text_tower.context
    wanted = BatchSpec(batch_size=options.batch_size, sizes=(size,), context=context, seed=options.seed)
    source = open_source(options.data, "train", options.data_dir)
    rows = np.round(np.linspace(0, _num_steps(bundle) - 1, LEVELS)).astype(np.int64)
    count, embeddings, errors = options.examples // options.batch_size, [], []
    iterator = batches(source, bundle.tokenizer, wanted)
    try:
        for i in range(count):
            batch = next(iterator)
            z_i = embed_images(bundle, jnp.asarray(to_float(batch[f"image_{size}"])))
            embeddings.append(np.asarray(z_i))
            if "prior" in bundle.parts:
                indices = jnp.arange(i * options.batch_size, (i + 1) * options.batch_size)
                noise = KeyNoise(key=jax.random.key(options.seed), indices=indices)
                tokens, mask = (jnp.asarray(batch[name]) for name in ("tokens", "mask"))
                errors.append(np.asarray(_errors(bundle, rows, z_i, tokens, mask, noise)))
            print(f"measured {(i + 1) * options.batch_size} of {count * options.batch_size}", file=sys.stderr)
    finally:
        iterator.close()
    if not errors:
        return np.concatenate(embeddings), None
    process = cast(ProcessSpec, bundle.part("prior").process).build()
    return np.concatenate(embeddings), X0Variance.of(process, rows, np.concatenate(errors, axis=1))


def _num_steps(bundle: Bundle) -> int:
    return cast(ProcessSpec, bundle.part("prior").process).num_steps if "prior" in bundle.parts else 1


def _errors(
    bundle: Bundle, rows: np.ndarray, z_i: Array, tokens: Array, mask: Array, noise: KeyNoise
) -> Float[Array, "s b"]:
    part, clip_part = bundle.part("prior"), bundle.part("clip")
    how = bundle.sampling.get("prior", StageSettings())
    static = part.spec, part.process, clip_part.spec, how, tuple(rows.tolist())
    return _prior_errors(*static, part.params, clip_part.params, bundle.stats, z_i, tokens, mask, noise)


@functools.partial(jax.jit, static_argnums=range(5))
def _prior_errors(
    spec: PriorSpec,
    process: ProcessSpec,
    clip_spec: CLIPSpec,
    how: StageSettings,
    rows: tuple[int, ...],
    params: Any,
    clip_params: Any,
    stats: Any,
    z_i: Array,
    tokens: Array,
    mask: Array,
    noise: KeyNoise,
) -> Array:
    def model_fn(x_t: Array, t: Array, cond: Any) -> Array:
        return prior.apply(spec, params, x_t, t, cond)

    cond = prior_cond(spec, clip_spec, clip_params, tokens, mask)
    x_0, levels = stats.normalise(z_i), np.asarray(rows)
    return squared_errors(process.build(), model_fn, cond, x_0, noise, levels, threshold=how.clip(None))


def main() -> None:
    """Measures, writes, says what was found."""
    options: Options = command_line.parse(Options, prog="python -m unclip_jax.eval.statistics", description=__doc__)
    compilation_cache.enable()
    bundle = store.load(options.bundle)
    z_i, x0_variance = measure(bundle, options)
    basis = fit_basis(z_i, options.components)
    found = {} if x0_variance is None else {"prior": x0_variance}
    bundle_hash = store.add_statistics(store.find(options.bundle), basis, found)
    share = np.asarray(basis.variance) / np.square(z_i - z_i.mean(0)).sum(1).mean()
    half = 1 + int(np.searchsorted(np.cumsum(share), 0.5))
    print(f"{len(share)} components, the first {half} of which hold half of the variance of {len(z_i)} embeddings")
    if x0_variance is not None:
        low, high = x0_variance.variance[0], x0_variance.variance[-1]
        print(f"the prior's x_0 is off by {low:.2g} (mean square) at the least noise, {high:.2g} at the most")
    print(f"wrote {store.find(options.bundle)}, hash {bundle_hash}")


if __name__ == "__main__":
    run_cli(main)
