"""Our side of `python -m benchmarks.gpu`, which starts it, tells it what to do, and says how they talk.

python -m benchmarks.gpu_ours --what prior --size full --batch 64 --device gpu
"""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from unclip_jax.convert.karlo import PRESET
from unclip_jax.core import command_line
from unclip_jax.core.errors import UserError, run_cli
from unclip_jax.core.typing import Params
from unclip_jax.diffusion.gaussian import ProcessSpec
from unclip_jax.diffusion.losses import loss
from unclip_jax.images.degrade import LowRes
from unclip_jax.models.base import Network
from unclip_jax.models.clip import CLIPSpec, TextSpec
from unclip_jax.models.cond import EncodedCaption
from unclip_jax.models.experts import TimestepExperts
from unclip_jax.models.parameters import parameter_count
from unclip_jax.models.prior import PriorSpec
from unclip_jax.models.unet import UNetSpec
from unclip_jax.nn.attention import Implementation
from unclip_jax.parallel.mesh import MeshSpec, make_mesh
from unclip_jax.parallel.step import compile_step
from unclip_jax.planning.flops import count_flops
from unclip_jax.stages.diffusion import DiffusionStage
from unclip_jax.stages.encoders import Encoder
from unclip_jax.stages.spaces import EmbeddingStats
from unclip_jax.stages.stage import Batch, Stage, StageMetrics
from unclip_jax.systems import unclip
from unclip_jax.systems.system import System, run
from unclip_jax.training.config import OptimConfig
from unclip_jax.training.state import abstract_state, init, state_shardings
from unclip_jax.training.step import make_step

CONTEXT, VOCABULARY = 77, 49408
WARM_UP = 2
OPTIM = OptimConfig(weight_decay=0.01, clip_norm=None)

Call = Callable[[], Any]
"""One training step or one request; gives the loss, or the images."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Be our side; requests come on stdin."""

    what: Literal["prior", "decoder", "sampling"] = "prior"
    """What to measure."""
    size: Literal["full", "mid", "small"] = "full"
    """A key of `SIZES`."""
    batch: int = 4
    """Examples of a training step, or images of a request."""
    attention: Literal["auto", "xla", "cudnn"] = "auto"
    """auto tries cudnn on a GPU and falls back on xla."""
    device: Literal["gpu", "cpu"] = "gpu"
    """Where to run."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """What makes a Karlo large: `tests.parity.peers.Size`, which tests/parity/test_gpu_benchmark.py compares it to."""

    embed_dim: int = 32
    text_heads: int = 4
    text_layers: int = 2
    prior_heads: int = 4
    prior_head_dim: int = 12
    prior_layers: int = 3
    channels: tuple[int, ...] = (32, 64, 96)
    layers_per_block: int = 2
    context_width: int = 48
    head_channels: int = 16
    decoder_size: int = 16
    upsampler_channels: tuple[int, ...] = (32, 64, 96)
    upsampler_size: int = 32


SIZES = {
    "small": Size(),
    "mid": Size(
        embed_dim=768,
        text_heads=12,
        text_layers=6,
        prior_heads=16,
        prior_head_dim=64,
        prior_layers=10,
        channels=(128, 256, 384, 512),
        context_width=768,
        head_channels=64,
        decoder_size=64,
        upsampler_channels=(64, 128, 192, 256),
        upsampler_size=128,
    ),
    "full": Size(
        embed_dim=768,
        text_heads=12,
        text_layers=12,
        prior_heads=32,
        prior_head_dim=64,
        prior_layers=20,
        channels=(320, 640, 960, 1280),
        layers_per_block=3,
        context_width=1536,
        head_channels=64,
        decoder_size=64,
        upsampler_channels=(320, 640, 960, 1280),
        upsampler_size=256,
    ),
}


def karlo(size: Size, attention: Implementation = "xla") -> tuple[CLIPSpec, dict[str, DiffusionStage]]:
    """CLIP and stages of a Karlo of that size, as `unclip_jax.convert.karlo` would import it; computes in bfloat16."""
    text = TextSpec(
        vocab_size=VOCABULARY,
        context=CONTEXT,
        width=size.embed_dim,
        num_layers=size.text_layers,
        num_heads=size.text_heads,
        eos_id=VOCABULARY - 1,
    )
    clip_spec = CLIPSpec(
        embed_dim=size.embed_dim,
        text=text,
        contrastive=False,
        activation="quick_gelu",
        embedding="raw",
        dtype="bfloat16",
        attention=attention,
    )
    prior_spec = PriorSpec(
        embed_dim=size.embed_dim,
        context=CONTEXT,
        text_width=size.embed_dim,
        width=size.prior_heads * size.prior_head_dim,
        num_layers=size.prior_layers,
        num_heads=size.prior_heads,
        null="empty_caption",
        dtype="bfloat16",
        attention=attention,
    )
    decoder_spec = UNetSpec(
        image_size=size.decoder_size,
        channels=size.channels[0],
        channel_mult=tuple(width // size.channels[0] for width in size.channels),
        num_blocks=size.layers_per_block,
        learned_sigma=True,
        attention_resolutions=tuple(size.decoder_size // 2**level for level in range(1, len(size.channels))),
        head_channels=size.head_channels,
        embed_dim=size.embed_dim,
        context_width=size.context_width,
        text_width=size.embed_dim,
        null="empty_caption",
        dtype="bfloat16",
        attention=attention,
    )
    upsampler_spec = UNetSpec(
        image_size=size.upsampler_size,
        channels=size.upsampler_channels[0],
        channel_mult=tuple(width // size.upsampler_channels[0] for width in size.upsampler_channels),
        num_blocks=size.layers_per_block,
        learned_sigma=False,
        conditioning="additive",
        low_res=True,
        dtype="bfloat16",
    )
    upsampler = TimestepExperts(expert=upsampler_spec, boundaries=(1.0,))
    low_res = LowRes(scale=size.upsampler_size // size.decoder_size)
    return clip_spec, {
        "prior": unclip.prior_stage(prior_spec, ProcessSpec(prediction="x0")),
        "decoder": unclip.decoder_stage(decoder_spec, ProcessSpec(variance="learned_range")),
        "upsampler_0": unclip.upsampler_stage(upsampler, ProcessSpec(), low_res),
    }


@dataclasses.dataclass(frozen=True)
class FeatureStage(Stage):
    """A prior or a decoder on batches that hold what CLIP says of them, and the noise and t as well, so that both sides
    train on the same numbers. `frozen` is {}."""

    stage: DiffusionStage

    @property
    def network(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        """The stage's own."""
        return self.stage.network

    def loss(
        self, params: PyTree, target: PyTree, frozen: PyTree, batch: Batch, keys: Key[Array, " b"]
    ) -> tuple[Float[Array, " b"], StageMetrics]:
        del target, frozen, keys
        caption = {name: batch[name] for name in ("z_t", "hidden", "mask")}
        nothing, empty = jnp.zeros(len(batch["t"]), bool), EncodedCaption(**caption)
        fields = {**caption, "z_i": batch["z_i"], "drop_z_i": nothing, "drop_text": nothing, "empty": empty}
        wanted = self.network.cond_fields
        cond = self.network.Cond(**{name: value for name, value in fields.items() if name in wanted})

        def model_fn(x_t: Array, time: Array, cond: Any) -> Array:
            return self.network.apply(params, x_t, time, cond)

        process = self.stage.process.build()
        per_example, _ = loss(process, model_fn, batch["x_0"], batch["t"], batch["noise"], cond)
        return per_example, {}


def examples(size: Size, what: str, count: int) -> dict[str, np.ndarray]:
    """x_0 (z_i [b d] or pixels [b h w 3] in [-1, 1]), its noise and t, and captions as CLIP would give them."""
    rng = np.random.default_rng(0)
    d = size.embed_dim
    shape = (d,) if what == "prior" else (size.decoder_size, size.decoder_size, 3)
    return {
        "x_0": np.tanh(rng.standard_normal((count, *shape), np.float32)),
        "noise": rng.standard_normal((count, *shape), np.float32),
        "t": rng.integers(0, 1000, count, np.int32),
        "z_i": rng.standard_normal((count, d), np.float32),
        "z_t": rng.standard_normal((count, d), np.float32),
        "hidden": rng.standard_normal((count, CONTEXT, d), np.float32),
        "mask": np.arange(CONTEXT) < rng.integers(2, CONTEXT, count)[:, None],
    }


def training(options: Options) -> tuple[dict[str, Any], Callable[[Implementation], Call]]:
    """Facts, and how to make a step that takes the state further."""
    size = SIZES[options.size]
    stage = FeatureStage(karlo(size)[1][options.what])
    mesh = make_mesh(MeshSpec(), jax.devices()[:1])
    abstract = abstract_state(stage, OPTIM, mesh)
    state = init(stage, OPTIM, mesh, jax.random.key(0))
    batch = examples(size, options.what, options.batch)

    def step_of(attention: Implementation) -> Callable:
        stage = FeatureStage(karlo(size, attention)[1][options.what])
        return make_step(stage, OPTIM, total_steps=1_000_000, seed=0)

    def call_with(attention: Implementation) -> Call:
        step = compile_step(step_of(attention), mesh, state_shardings(abstract), {})
        rows = step.put(batch)

        def call() -> Array:
            nonlocal state
            state, metrics = step.run(state, {}, rows)
            return metrics["loss"]

        return call

    # Of cudnn's attention no product is to be seen.
    flops = count_flops(step_of("xla"), abstract, {}, batch)
    return {"parameters": parameter_count(state.params), "flops": flops}, call_with


def sampling(options: Options) -> tuple[dict[str, Any], Callable[[Implementation], Call]]:
    """Facts, and how to make a request: captions to images in host memory. Weights are bfloat16, as torch's are."""
    size, b = SIZES[options.size], options.batch

    def weights(network: Network, number: int) -> Params:
        key = jax.random.key(number)
        return jax.jit(lambda key: jax.tree.map(lambda x: x.astype(jnp.bfloat16), network.init(key)))(key)

    clip, stages = karlo(size)
    networks = {"clip": clip, **{name: stage.network for name, stage in stages.items()}}
    params = {name: weights(network, i) for i, (name, network) in enumerate(networks.items())}
    settings = {name: dataclasses.replace(own, limit=5.0 if name == "prior" else 1.0) for name, own in PRESET.items()}
    stats = EmbeddingStats(mean=jnp.zeros(size.embed_dim), std=jnp.ones(size.embed_dim))
    tokens = jnp.tile(jnp.arange(CONTEXT, dtype=jnp.int32), (b, 1))
    inputs = {"tokens": tokens, "mask": jnp.broadcast_to(jnp.arange(CONTEXT) < 9, tokens.shape)}

    def call_with(attention: Implementation) -> Call:
        clip, stages = karlo(size, attention)
        system = System(
            name="karlo",
            encoders={"clip": Encoder(network=clip, params=params["clip"])},
            stages=dict(stages),
            params={name: params[name] for name in stages},
            streams=unclip.streams(list(stages)),
            stats=stats,
        )

        def call() -> np.ndarray:
            *_, last = run(system, inputs, jax.random.key(0), settings=settings)
            return np.asarray(last.value)

        return call

    return {"parameters": parameter_count(params)}, call_with


def repeat(call: Call, steps: int) -> tuple[float, float]:
    """Seconds of one of `steps` calls in a row, and the mean of what the last one gave."""
    start = time.perf_counter()
    for _ in range(steps - 1):
        call()
    result = jax.block_until_ready(call())
    seconds = (time.perf_counter() - start) / steps
    return seconds, float(np.mean(result))


def prepare(options: Options) -> tuple[Call, dict[str, Any]]:
    """A warm call, and the answer to "prepare"."""
    facts, call_with = (sampling if options.what == "sampling" else training)(options)
    wanted = options.attention
    tries: tuple[Implementation, ...] = (wanted,) if wanted != "auto" else ("xla",)
    if wanted == "auto" and options.device == "gpu":
        tries = "cudnn", "xla"
    for attention in tries:
        try:
            call = call_with(attention)
            first, _ = repeat(call, 1)
        except Exception as error:
            if attention == tries[-1]:
                raise
            facts["refused"] = f"{attention}: {str(error).strip().splitlines()[0]}"
        else:
            seconds, _ = repeat(call, WARM_UP)
            return call, facts | {"attention": attention, "compile_seconds": max(first - seconds, 0.0)}
    raise AssertionError("the last of the tries returns or raises")


def device_of(options: Options) -> Any:
    """The one device to run on.

    Raises:
        UserError: there is none of that kind.
    """
    try:
        return jax.devices(options.device)[0]
    except RuntimeError:
        raise UserError(
            f"JAX sees no {options.device.upper()} here; --device cpu tries this script on a CPU, whose times say "
            "nothing of GPUs"
        ) from None


def main() -> None:
    """Answer until stdin ends."""
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    options: Options = command_line.parse(Options, prog="python -m benchmarks.gpu_ours", description=__doc__)
    # A cache would hide what compiling takes.
    jax.config.update("jax_enable_compilation_cache", False)

    def answer(**facts: Any) -> None:
        print(json.dumps(facts), file=answers, flush=True)

    answer(device=device_of(options).device_kind, software=f"jax {jax.__version__}")
    call: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "prepare":
            call, facts = prepare(options)
            answer(**facts)
        else:
            seconds, value = repeat(call, request["steps"])
            answer(seconds=seconds, value=value)


if __name__ == "__main__":
    run_cli(main)
