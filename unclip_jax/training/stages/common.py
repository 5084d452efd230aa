"""What the stages share: where examples come from, what is drawn for each, and the metrics of a diffusion loss."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Generator
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, Key

from unclip_jax.bundle import store
from unclip_jax.bundle.parts import Kind, identity
from unclip_jax.conditioning import known_part
from unclip_jax.core.config import from_json
from unclip_jax.core.errors import UserError
from unclip_jax.core.typing import Params
from unclip_jax.data.pipeline import BatchSpec, batches
from unclip_jax.data.sources import Source, open_source
from unclip_jax.images.masks import draw_holes
from unclip_jax.models import clip
from unclip_jax.models.clip import CLIPSpec, TextSpec
from unclip_jax.models.prior import EmbeddingStats
from unclip_jax.models.unet import UNetCond, UNetSpec, made_to_inpaint
from unclip_jax.parallel.distributed import gather_rows
from unclip_jax.parallel.rules import Rules
from unclip_jax.sharding import transformer_rules
from unclip_jax.text.tokenizer import Tokenizer
from unclip_jax.training.checkpoint import FOLDER, load_params
from unclip_jax.training.stage import Stage, StageMetrics
from unclip_jax.training.workdir import open_folder

Batches = Callable[[int], Generator[dict[str, np.ndarray], None, None]]
"""From a step to the batches of that step and on; to be closed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where examples come from and how many make a batch."""

    source: str = "captioned_shapes"
    """"captioned_shapes", or a folder of images with captions (x.jpg + x.txt, metadata.jsonl or metadata.csv)."""
    split: str = "train"
    """"train", "test" (of a folder), "test_seen" or "test_unseen" (of captioned_shapes)."""
    data_dir: str = "data"
    """Where captioned_shapes is built and kept."""
    batch_size: int
    """Examples in the global batch, over all hosts."""
    flip: bool = False
    """Mirror half of the images. Not for captions that say left and right."""
    max_bad_share: float = 0.01
    """Largest share of a folder's images that may be unreadable or without a caption."""
    num_workers: int = 0
    """Reader processes; 0 reads in this one."""
    num_threads: int = 2
    """Reading threads of each process."""
    seed: int = 0
    """Of the order, the crops and the flips."""
    num_train: int = 60_000
    """Training examples of captioned_shapes, where it has to be built."""
    resolution: int = 128
    """Side in pixels of captioned_shapes' images."""

    def open(self, *, captions: bool) -> Source:
        """The source of records; raises UserError where there is none, or too much of it is broken."""
        if self.source == "captioned_shapes":
            options = {"resolution": self.resolution, "num_train": self.num_train}
        else:
            options = {"max_bad_share": self.max_bad_share, "captions": captions}
        source = open_source(self.source, self.split, self.data_dir, **options)
        report = getattr(source, "report", None)
        if report is not None and report()["bad"]:
            print(f"left out of {self.source}: {report()}")
        return source

    def holding(
        self,
        *sizes: int,
        crop: int | None = None,
        context: int | None = None,
        negatives: tuple[str, ...] = (),
    ) -> BatchSpec:
        """Batches of images of these sizes, and more; see `BatchSpec`."""
        return BatchSpec(
            batch_size=self.batch_size,
            sizes=tuple(dict.fromkeys(sizes)),
            crop=crop,
            context=context,
            negatives=negatives,
            flip=self.flip,
            seed=self.seed,
        )

    def batches(
        self, source: Source, tokenizer: Tokenizer | None, spec: BatchSpec, start_step: int
    ) -> Generator[dict[str, np.ndarray], None, None]:
        """This host's rows of the global batches from `start_step` on."""
        return batches(
            source,
            tokenizer,
            spec,
            start_step=start_step,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            num_workers=self.num_workers,
            num_threads=self.num_threads,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blueprint:
    """What a run of a stage compiles, before there are data or weights: for the run itself, and to plan one."""

    stage: Stage
    rules: Rules
    """Where the parameters live."""
    batch: BatchSpec
    clip_spec: CLIPSpec | None = None
    """Of the frozen CLIP that the stage listens to."""
    needs_stats: bool = False
    """Whether it needs the statistics of z_i as well."""

    @property
    def frozen(self) -> dict[str, Any]:
        """What `stage.loss` takes as `frozen`, as shapes."""
        if self.clip_spec is None:
            return {}
        frozen: dict[str, Any] = {"clip": clip.abstract_params(self.clip_spec)}
        if self.needs_stats:
            vector = jax.ShapeDtypeStruct((self.clip_spec.embed_dim,), np.float32)
            frozen["stats"] = EmbeddingStats(mean=vector, std=vector)
        return frozen

    @property
    def frozen_rules(self) -> Rules:
        """Where `frozen` lives."""
        if self.clip_spec is None:
            return ()
        stats: Rules = ((r"^stats/", P()),) if self.needs_stats else ()
        return (*stats, *transformer_rules(self.clip_spec))


def first_examples(batches: Batches, count: int) -> dict[str, np.ndarray]:
    """The first `count` examples of a run, for its previews: the same on every host. All of them must ask."""
    with contextlib.closing(batches(0)) as iterator:
        return {name: gather_rows(value[:count])[:count] for name, value in next(iterator).items()}


READING = ("data.data_dir", "data.num_workers", "data.num_threads", "data.max_bad_share")
"""What a resumed run may change about its data."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrozenCLIP:
    """A trained CLIP that a later stage listens to; `identity` tells its embedding space from another's."""

    spec: CLIPSpec
    params: Params = dataclasses.field(repr=False)
    tokenizer: Tokenizer
    identity: str

    @classmethod
    def load(cls, where: str) -> "FrozenCLIP":
        """From the workdir of a CLIP run (its moving average), a bundle's folder or a shipped bundle's name."""
        if not where:
            raise UserError("no CLIP given; set --clip to the workdir of a CLIP run or to a bundle")
        if (open_folder(where) / FOLDER).is_dir():
            params, meta = load_params(where)
            if meta["kind"] != "clip":
                raise UserError(f"{where} is a {meta['kind']} run; set --clip to the workdir of a CLIP run")
            return cls(
                spec=from_json(CLIPSpec, meta["config"]["model"], f"{where}: model"),
                params=params,
                tokenizer=from_json(Tokenizer, meta["extra"]["tokenizer"], f"{where}: tokenizer"),
                identity=identity(params),
            )
        bundle = store.load(where, parts=("clip",))
        part = bundle.part("clip")
        if not isinstance(part.spec, CLIPSpec) or bundle.tokenizer is None or part.clip_identity is None:
            raise UserError(f"{where} has no CLIP with a tokenizer; choose another bundle")
        return cls(spec=part.spec, params=part.params, tokenizer=bundle.tokenizer, identity=part.clip_identity)


def reading(own: TextSpec | None, clip_spec: CLIPSpec) -> TextSpec | None:
    """A stage's own caption encoder, if it has one, made to read a CLIP's tokens."""
    if own is None:
        return None
    text = clip_spec.text_tower
    return dataclasses.replace(own, vocab_size=text.vocab_size, eos_id=text.eos_id, context=text.context)


def load_start(where: str, kind: Kind, spec: UNetSpec | None = None) -> Params | None:
    """Weights to start a run from: of another run's newest checkpoint, or of a bundle's part; None for "".

    Args:
        spec: of the network, if it is one of pixels. Of a bundle's upsamplers the one of its size is taken; if it is to
            inpaint, so may the network of the weights, or not.
    """
    params = _weights_of(where, kind, None if spec is None else spec.image_size)
    return params if params is None or spec is None else made_to_inpaint(spec, params)


def _weights_of(where: str, kind: Kind, image_size: int | None) -> Params | None:
    if not where:
        return None
    if (open_folder(where) / FOLDER).is_dir():
        params, meta = load_params(where)
        if meta["kind"] != kind:
            raise UserError(f"{where} is a {meta['kind']} run; start from a {kind} run or a bundle")
        return params
    described = store.load(where, weights=False)
    for name, part in described.parts.items():
        if part.kind == kind and (kind != "upsampler" or cast(UNetSpec, part.spec).image_size == image_size):
            if part.experts:
                raise UserError(f"{name} of bundle {where} is several networks; start from a part that is one")
            return store.load(where, parts=(name,)).part(name).params
    raise UserError(f"bundle {where} has no such {kind}; start from another bundle or run")


@functools.partial(jax.vmap, in_axes=(0, None))
def stream(key: Key[Array, ""], index: int) -> Key[Array, ""]:
    """One of an example's independent streams of randomness: its timestep, noise, dropped conditions, ..."""
    return jax.random.fold_in(key, index)


TIMESTEP, NOISE, DROP_IMAGE, DROP_CAPTION, DEGRADE, DROPOUT, HOLE = range(7)
"""The streams."""


def draw_timesteps(keys: Key[Array, " b"], num_steps: int) -> Int[Array, " b"]:
    """Uniform in [0, num_steps), one per example."""
    return jax.vmap(lambda key: jax.random.randint(key, (), 0, num_steps))(stream(keys, TIMESTEP))


def draw_noise(keys: Key[Array, " b"], shape: tuple[int, ...]) -> Float[Array, "b ..."]:
    """Standard normal, one array of `shape` per example."""
    return jax.vmap(lambda key: jax.random.normal(key, shape))(stream(keys, NOISE))


def draw_drop(keys: Key[Array, " b"], rate: float, which: int) -> Bool[Array, " b"]:
    """True with probability `rate`, one per example, from the stream `which`."""
    return jax.vmap(lambda key: jax.random.bernoulli(key, rate))(stream(keys, which))


def with_holes(
    spec: UNetSpec, cond: UNetCond, x_0: Float[Array, "b h w 3"], keys: Key[Array, " b"], drop_known: float
) -> UNetCond:
    """`cond` with what a network that inpaints is told of the images: all but a hole, or nothing for `drop_known`."""
    if not spec.inpaints:
        return cond
    hole = draw_holes(stream(keys, HOLE), x_0.shape[1], drop_known)
    return dataclasses.replace(cond, known=known_part(x_0, hole))


def diffusion_metrics(terms: dict[str, Float[Array, " b"]], t: Int[Array, " b"], num_steps: int) -> StageMetrics:
    """Each term of a diffusion loss, and "mse" again in four quarters of the timesteps (q0 has the least noise)."""
    metrics = {name: (value, jnp.ones_like(value)) for name, value in terms.items()}
    quarter = t * 4 // num_steps
    for i in range(4):
        metrics[f"mse_q{i}"] = (terms["mse"], (quarter == i).astype(jnp.float32))
    return metrics
