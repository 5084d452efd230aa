"""A network, a condition, a stage and a system of one's own: they train, are packed, load, sample and are planned
without a line in the library. What makes them is in `TonerCond` to `SYSTEM`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from PIL import Image

from tests.planning.libtpu import needs_libtpu
from unclip_jax.bundle.store import load, save
from unclip_jax.data.config import DataConfig
from unclip_jax.diffusion import FlowSpec
from unclip_jax.models.base import NETWORKS, Denoiser
from unclip_jax.parallel.mesh import MeshSpec
from unclip_jax.sampling.session import Request, Session
from unclip_jax.stages.conditions import CONDITIONS, Condition
from unclip_jax.stages.diffusion import DiffusionStage
from unclip_jax.stages.settings import SamplingSettings
from unclip_jax.stages.spaces import Pixels
from unclip_jax.stages.stage import STAGES
from unclip_jax.training.config import OptimConfig, RunConfig
from unclip_jax.training.export import assemble
from unclip_jax.training.run import train
from unclip_jax.training.stage_configs import StageConfig

pytestmark = pytest.mark.usefixtures("quick_compile", "known")


@struct.dataclass
class TonerCond:
    tone: jax.Array

    def null(self):
        return self.replace(tone=jnp.zeros_like(self.tone))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Toner(Denoiser):
    """Mixes the channels of each pixel, its time and the tone of the whole image."""

    TAG = ("network", "toner")
    Cond = TonerCond
    cond_fields = frozenset({"tone"})
    side: int

    @property
    def sample_shape(self):
        return self.side, self.side, 3

    def init(self, key):
        return {"mix": {"kernel": jax.random.normal(key, (7, 3)) / 3, "bias": jnp.zeros(3)}}

    def apply(self, params, x_t, time, cond, dropout_keys=None):
        given = jnp.concatenate([time[:, None] / 1000, cond.tone], axis=1)[:, None, None]
        x = jnp.concatenate([x_t, jnp.broadcast_to(given, (*x_t.shape[:3], 4))], axis=-1)
        return x @ params["mix"]["kernel"] + params["mix"]["bias"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tone(Condition):
    """The mean colour, in sampling that of the image before."""

    TAG = ("condition", "tone")
    array: str

    def reads(self, network):
        return (self.array,)

    def train(self, network, frozen, batch, x_0, keys):
        return {"tone": x_0.mean((1, 2))}

    def derive(self, network, x_0):
        return {self.array: x_0}

    def sample(self, network, frozen, arrays, count):
        return {"tone": arrays[self.array].mean((1, 2))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decayed(DiffusionStage):
    """A stage with a loss of its own."""

    TAG = ("stage", "decayed")
    decay: float = 0.01

    def loss(self, params, target, frozen, batch, keys):
        losses, metrics = super().loss(params, target, frozen, batch, keys)
        return losses + self.decay * jnp.sum(params["mix"]["kernel"] ** 2), metrics


def stage_of(before, side):
    shared = {"network": Toner(side=side), "process": FlowSpec(), "space": Pixels()}
    return Decayed(conditions=(Tone(array=before),), output=f"image_{side}", **shared)


SYSTEM = {"small": stage_of("image_4", 8), "large": stage_of("image_8", 16)}


@pytest.fixture(scope="module")
def known():
    """The names by which files know the classes."""
    with pytest.MonkeyPatch.context() as patch:
        for table, own in ((NETWORKS, Toner), (CONDITIONS, Tone), (STAGES, Decayed)):
            patch.setitem(table, own.TAG[1], own)
        yield


def config(name, folder):
    return StageConfig(
        trained=SYSTEM[name],
        data=DataConfig(source=str(folder / "images"), batch_size=8),
        optim=OptimConfig(learning_rate=0.03, warmup_steps=1, ema_decay=0.5),
        run=RunConfig(workdir=str(folder / name), steps=30, sample_every=30, log_every=1, tensorboard=False),
        sampling=SamplingSettings(steps=4, guidance_scale=2.0),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two trained stages and their bundle."""
    folder = tmp_path_factory.mktemp("family")
    (folder / "images").mkdir()
    for i, colour in enumerate(np.random.default_rng(0).integers(0, 256, (16, 3))):
        Image.new("RGB", (20, 20), tuple(colour.tolist())).save(folder / "images" / f"{i}.png")
    for name in SYSTEM:
        train(config(name, folder))
    runs, streams = {name: folder / name for name in SYSTEM}, {"small": 0, "large": 1}
    save(assemble(runs, streams=streams, name="tones", license="none", description="a test"), folder / "bundle")
    return folder


def test_it_trains(folder):
    for name in SYSTEM:
        lines = (folder / name / "metrics.jsonl").read_text().splitlines()
        losses = [float(line.split('"loss": ')[1].split(",")[0]) for line in lines]
        assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
        assert (folder / name / "samples" / "step_000030.png").is_file()


def test_it_loads_and_samples(folder):
    system = load(folder / "bundle")
    assert system.stages == SYSTEM and system.sampling["small"].guidance_scale == 2.0
    tones = np.linspace(-0.9, 0.9, 3, dtype=np.float32)[:, None, None, None] * np.ones((1, 4, 4, 3), np.float32)
    outputs = {each.stage: each.value for each in Session(system).submit(Request(inputs={"image_4": tones}, seed=0))}
    assert {name: value.shape for name, value in outputs.items()} == {"small": (3, 8, 8, 3), "large": (3, 16, 16, 3)}
    # It has learned that images are of the colour that they are conditioned on.
    means = np.asarray(outputs["small"]).mean((1, 2, 3))
    assert (np.diff(means) > 0.2).all()


@needs_libtpu
def test_it_is_planned(folder):
    from unclip_jax.planning.chips import describe
    from unclip_jax.planning.plan import plan_training
    from unclip_jax.planning.sampling import plan_sampling

    slice_, mesh, own = describe("v5e:2x2"), MeshSpec(data=4), config("large", folder)
    plan = plan_training(own, own, {}, own.optim, slice_, mesh)
    # The product, and its gradient by the kernel.
    assert plan.parameters == 24 and plan.memory.fits and plan.model_flops == 2 * 2 * 21 * 16 * 16 * 8
    assert plan_sampling(own.trained, own.sampling, {}, slice_, mesh, 8).memory.fits
