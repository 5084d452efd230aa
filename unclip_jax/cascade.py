"""The cascade: caption -> z_i -> base image -> larger images, one compiled program per stage (2204.06125, section 2).

(1) z_i ~ prior(y);  of `num_candidates` draws the one with the largest z_i . z_t is kept        section 2.2
(2) x_base ~ decoder(z_i, y)                                                                      section 2.1
(3) x_next ~ upsampler(x)                     condition made by `LowRes.condition`, as in training

All functions are pure. A program depends on specs, settings and shapes alone, so another prompt or seed never compiles
again. Noise belongs to an image (its global index) and a stage, never to a place in a batch: image 7 of a request
is the same picture whatever the batch size.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key

from unclip_jax.bundle.parts import Bundle, Part
from unclip_jax.conditioning import prior_cond
from unclip_jax.core.config import suggest
from unclip_jax.core.errors import UserError
from unclip_jax.core.typing import Params
from unclip_jax.diffusion.gaussian import ProcessSpec
from unclip_jax.diffusion.noise import KeyNoise, NoiseSource
from unclip_jax.diffusion.samplers import sample
from unclip_jax.models import clip, prior
from unclip_jax.models.clip import CLIPSpec
from unclip_jax.models.prior import EmbeddingStats, PriorSpec
from unclip_jax.models.unet import UNetCond, UNetSpec
from unclip_jax.parallel.step import batch_sharding
from unclip_jax.programs import Static, decoder_told, pixel_model, program, static_of, upsampler_told
from unclip_jax.sharding import mesh_of
from unclip_jax.stages.settings import StageSettings

PRIOR_STREAM, DECODER_STREAM, UPSAMPLER_STREAM = range(3)


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What one stage made: its part's name, and z_i [b d] (prior) or images [b h w 3] in [-1, 1]."""

    part: str
    value: Float[Array, "b ..."]


def default_settings(bundle: Bundle) -> dict[str, StageSettings]:
    """The bundle's own settings, by part, in the order in which a cascade runs."""
    order = [name for name in ("prior", "decoder") if name in bundle.parts]
    order += sorted(name for name, part in bundle.parts.items() if part.kind == "upsampler")
    return {name: bundle.sampling.get(name, StageSettings()) for name in order}


def stages_until(bundle: Bundle, stop_at: int | None, first: Literal["prior", "decoder"] = "prior") -> list[str]:
    """The parts that run from `first` to images of `stop_at` px; to the end for None. UserError for another size."""
    names = [name for name in default_settings(bundle) if first == "prior" or name != "prior"]
    for name in ("clip", first, "decoder"):
        bundle.part(name)
    if stop_at is None:
        return names
    sizes = {cast(UNetSpec, bundle.parts[name].spec).image_size: i for i, name in enumerate(names) if name != "prior"}
    if stop_at not in sizes:
        raise UserError(f"stop_at is {stop_at}; bundle {bundle.name} makes {', '.join(map(str, sizes))} px")
    return names[: sizes[stop_at] + 1]


def choose_settings(
    bundle: Bundle, names: list[str], settings: dict[str, StageSettings] | None
) -> dict[str, StageSettings]:
    """The bundle's settings with `settings` on top, checked for the parts `names`."""
    chosen = default_settings(bundle)
    for name, how in (settings or {}).items():
        if name not in chosen:
            raise UserError(f"settings for {name}, which bundle {bundle.name} has not; {suggest(name, list(chosen))}")
        chosen[name] = how
    for name in names:
        chosen[name].check(name, cast(ProcessSpec, bundle.parts[name].process))
        # What a sampler lacks is missed here, not when its stage begins.
        chosen[name].algorithm(bundle.parts[name].x0_variance)
    return chosen


def cascade(
    bundle: Bundle,
    tokens: Int[Array, "b n"],
    mask: Bool[Array, "b n"],
    key: Key[Array, ""],
    *,
    indices: Int[Array, " b"] | None = None,
    settings: dict[str, StageSettings] | None = None,
    stop_at: int | None = None,
) -> Iterator[Drawn]:
    """Draws one image per row of tokenised captions, stage by stage as the iterator is advanced.

    Args:
        key: of the whole request. Stages and images fold their own numbers into it.
        indices: each image's number in the request; 0, 1, ... by default.
        settings: by part; the bundle's own where a part is not named.
        stop_at: size in pixels after which to stop; None runs the whole cascade.

    Raises:
        UserError: a setting is out of range, or the bundle lacks a part.
    """
    chosen = choose_settings(bundle, stages_until(bundle, stop_at), settings)
    if indices is None:
        indices = jnp.arange(len(tokens))
    z_i = draw_embedding(bundle, tokens, mask, prior_noise(key, indices, chosen["prior"]), chosen["prior"])
    yield Drawn("prior", z_i)
    yield from decode(bundle, z_i, tokens, mask, key, indices=indices, settings=chosen, stop_at=stop_at)


def decode(
    bundle: Bundle,
    z_i: Float[Array, "b d"],
    tokens: Int[Array, "b n"],
    mask: Bool[Array, "b n"],
    key: Key[Array, ""],
    *,
    captioned: bool = True,
    x_T: Float[Array, "b h w 3"] | None = None,
    indices: Int[Array, " b"] | None = None,
    settings: dict[str, StageSettings] | None = None,
    stop_at: int | None = None,
) -> Iterator[Drawn]:
    """The cascade from embeddings on: equations (2) and (3); arguments as in `cascade`.

    Args:
        captioned: False hides the captions from the decoder, as guidance does on its other side.
        x_T: what the decoder starts from, instead of noise of its own.
    """
    names = stages_until(bundle, stop_at, "decoder")
    chosen = choose_settings(bundle, names, settings)
    if indices is None:
        indices = jnp.arange(len(z_i))
    image = None
    for name in names:
        noise = stage_noise(key, name, indices)
        if name == "decoder":
            image = draw_image(bundle, z_i, tokens, mask, noise, chosen[name], captioned=captioned, x_T=x_T)
        else:
            image = upsample(bundle.parts[name], cast(Array, image), noise, chosen[name])
        yield Drawn(name, image)


def stage_noise(key: Key[Array, ""], name: str, indices: Int[Array, " b"]) -> KeyNoise:
    """The noise of the decoder, or of an upsampler, in a request with that key."""
    stream = DECODER_STREAM if name == "decoder" else UPSAMPLER_STREAM + int(name.removeprefix("upsampler_"))
    return KeyNoise(key=jax.random.fold_in(key, stream), indices=indices)


def prior_noise(key: Key[Array, ""], indices: Int[Array, " b"], how: StageSettings) -> KeyNoise:
    """The prior's noise in a request with that key: for each image's candidates, side by side."""
    candidates = (indices[:, None] * how.num_candidates + jnp.arange(how.num_candidates)).reshape(-1)
    return KeyNoise(key=jax.random.fold_in(key, PRIOR_STREAM), indices=candidates)


def draw_embedding(
    bundle: Bundle, tokens: Int[Array, "b n"], mask: Bool[Array, "b n"], noise: NoiseSource, how: StageSettings
) -> Float[Array, "b d"]:
    """Equation (1): raw z_i. `noise` is for b * num_candidates embeddings, those of an image side by side."""
    part, clip_part = bundle.part("prior"), bundle.part("clip")
    weights = part.params, clip_part.params, bundle.stats
    return _prior_program(static_of(part), clip_part.spec, how, *weights, tokens, mask, noise)


def draw_image(
    bundle: Bundle,
    z_i: Float[Array, "b d"],
    tokens: Int[Array, "b n"],
    mask: Bool[Array, "b n"],
    noise: NoiseSource,
    how: StageSettings,
    *,
    captioned: bool = True,
    x_T: Float[Array, "b h w 3"] | None = None,
) -> Float[Array, "b h w 3"]:
    """Equation (2): images of the decoder's size; without captions if they are not to count.

    Args:
        x_T: start, instead of the noise's own.
    """
    part, clip_part = bundle.part("decoder"), bundle.part("clip")
    weights = part.params, clip_part.params
    rows = z_i, tokens, mask, x_T
    return _decoder_program(static_of(part), clip_part.spec, how, captioned, *weights, *rows, noise)


def upsample(
    part: Part, images: Float[Array, "b h w 3"], noise: NoiseSource, how: StageSettings
) -> Float[Array, "b H W 3"]:
    """Equation (3): images `part.spec.image_size / part.low_res_size` times as large."""
    return _upsampler_program(static_of(part), cast(int, part.low_res_size), how, part.params, images, noise)


def trace_stage(bundle: Bundle, name: str, count: int, how: StageSettings) -> Any:
    """The program of one stage for `count` images, `jax.stages.Traced`; the bundle's weights are shapes on a mesh.

    For whoever wants to know what drawing would take.
    """
    part = bundle.part(name)
    sharding = batch_sharding(cast(Mesh, mesh_of(part.params)))

    def rows(*sizes: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((count, *sizes), dtype, sharding=sharding)

    candidates = count * (how.num_candidates if name == "prior" else 1)
    noise = jax.eval_shape(lambda: KeyNoise(key=jax.random.key(0), indices=jnp.arange(candidates)))
    if part.kind == "upsampler":
        size = cast(int, part.low_res_size)
        return _upsampler_program.trace(static_of(part), size, how, part.params, rows(size, size, 3), noise)
    clip_part = bundle.part("clip")
    clip_spec = cast(CLIPSpec, clip_part.spec)
    context = clip_spec.text_tower.context
    captions = rows(context, dtype=jnp.int32), rows(context, dtype=jnp.bool)
    if name == "prior":
        weights = part.params, clip_part.params, bundle.stats
        return _prior_program.trace(static_of(part), clip_spec, how, *weights, *captions, noise)
    z_i = rows(clip_spec.embed_dim)
    weights = part.params, clip_part.params
    return _decoder_program.trace(static_of(part), clip_spec, how, True, *weights, z_i, *captions, None, noise)


@program(3, 3)
def _prior_program(
    static: Static,
    clip_spec: CLIPSpec,
    how: StageSettings,
    params: Params,
    clip_params: Params,
    stats: EmbeddingStats,
    tokens: Array,
    mask: Array,
    noise: NoiseSource,
) -> Array:
    spec, process = cast(PriorSpec, static[0]), static[1]
    b, count = len(tokens), how.num_candidates

    def model_fn(x_t: Array, t: Array, cond: Any) -> Array:
        return prior.apply(spec, params, x_t, t, cond)

    told = prior_cond(spec, clip_spec, clip_params, tokens, mask)
    repeated = jax.tree.map(lambda x: jnp.repeat(x, count, axis=0), told)
    z = sample(
        how.build(process),
        how.guide(process, model_fn),
        repeated,
        how.algorithm(static[3]),
        noise,
        shape=(b * count, spec.embed_dim),
        threshold=how.clip(None),
    )
    z_i = stats.denormalise(z)
    if clip_spec.embedding == "unit":
        z_i = clip.unit(z_i)
    z_i = z_i.reshape(b, count, -1)
    best = jnp.argmax(jnp.einsum("bcd,bd->bc", clip.unit(z_i), told.z_t), axis=1)
    return jnp.take_along_axis(z_i, best[:, None, None], axis=1)[:, 0]


@program(4, 2)
def _decoder_program(
    static: Static,
    clip_spec: CLIPSpec,
    how: StageSettings,
    captioned: bool,
    params: Params,
    clip_params: Params,
    z_i: Array,
    tokens: Array,
    mask: Array,
    x_T: Array | None,
    noise: NoiseSource,
) -> Array:
    cond = decoder_told(static, clip_spec, captioned, clip_params, z_i, tokens, mask)
    return _draw_pixels(static, how, params, cond, x_T, noise, len(z_i))


@program(3, 1)
def _upsampler_program(
    static: Static, low_res_size: int, how: StageSettings, params: Params, images: Array, noise: NoiseSource
) -> Array:
    return _draw_pixels(static, how, params, upsampler_told(static, low_res_size, images), None, noise, len(images))


def _draw_pixels(
    static: Static,
    how: StageSettings,
    params: Params,
    cond: UNetCond,
    x_T: Array | None,
    noise: NoiseSource,
    count: int,
) -> Array:
    size, process = cast(UNetSpec, static[0]).image_size, static[1]
    return sample(
        how.build(process),
        how.guide(process, pixel_model(static, params)),
        cond,
        how.algorithm(static[3]),
        noise,
        shape=(count, size, size, 3),
        x_T=x_T,
        threshold=how.clip(1.0),
    )
