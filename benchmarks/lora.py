"""A LoRA of the shipped decoder: the memory that it trains in, and whether it teaches a colour that nobody has named.

    python -m benchmarks.lora memory                    bytes of a step, an adapter's against all weights'
    python -m benchmarks.lora teach --steps 300         "lime", which lies between the demo's yellow and its green

`teach` mixes pictures of lime shapes, captioned so, with the training data; it counts the share of captions of one lime
object whose picture has the hue of lime (within 12 degrees, as most of its saturated pixels), and of the captions of
`unclip_jax.eval.shapes` what it always counts, without the adapter and with it, at 32 px.
"""

import dataclasses
import math
import tempfile
import time
from pathlib import Path
from typing import Annotated
from unittest import mock

import jax
import numpy as np
import tyro
from jaxtyping import UInt8
from PIL import Image

from train.adapter import write
from train.recipes import RECIPES
from unclip_jax.adapters.lora import LoRAConfig
from unclip_jax.bundle import store
from unclip_jax.convert.adapter_options import adapted
from unclip_jax.core import command_line, compilation_cache
from unclip_jax.core.errors import run_cli
from unclip_jax.data.captioned_shapes import scenes
from unclip_jax.data.captioned_shapes.render import render
from unclip_jax.data.config import DataConfig
from unclip_jax.eval.shapes.cases import GROUPS, cases, evaluate
from unclip_jax.parallel.mesh import MeshSpec, make_mesh
from unclip_jax.planning.plan import training_step
from unclip_jax.sampling.text_to_image import text_to_image
from unclip_jax.systems.system import System
from unclip_jax.training.adapting import trained_stage
from unclip_jax.training.config import OptimConfig
from unclip_jax.training.origin import starting_from
from unclip_jax.training.run import train
from unclip_jax.training.stage_configs import Config, DecoderConfig
from unclip_jax.training.state import abstract_state

LIME = (150, 222, 24)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes that a step of the demo's decoder holds."""

    rank: int = 8
    """Of the adapter."""
    compiled: bool = True
    """Also compile the step, for what XLA counts."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Teach:
    """Teach the demo's decoder a colour."""

    rank: int = 8
    """Of the adapter."""
    steps: int = 300
    """Of training."""
    pictures: int = 256
    """Pictures of lime shapes, and as many of others."""
    prompts: int = 128
    """Captions of the old colours that are judged; half as many of lime."""
    workdir: Path | None = None
    """Where the run stays; it goes by default."""


def config_of(workdir: str, lora: LoRAConfig, **changes) -> DecoderConfig:
    """The demo's decoder, fine-tuned."""
    recipe = RECIPES["decoder"]["shapes"]()
    run = dataclasses.replace(recipe.run, workdir=workdir, sample_every=0, log_every=25, tensorboard=False)
    config = starting_from(dataclasses.replace(recipe, run=run, clip="demo"), "demo")
    assert isinstance(config, DecoderConfig)
    return dataclasses.replace(config, lora=lora, **changes)


def size(tree: object) -> int:
    """Bytes of a tree of shapes."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def measure(config: Config, compiled: bool) -> dict[str, int]:
    """Bytes of the state, of the gradient, and what XLA counts for the compiled step."""
    mesh, clip = make_mesh(MeshSpec(), jax.devices()[:1]), store.load("demo", weights=False).encoder("clip").network
    state = abstract_state(trained_stage(config), config.optim, mesh)
    own = {"optimiser": size(state.opt_state), "gradient": size(state.params), "moving average": size(state.ema)}
    if not compiled:
        return own
    step, arguments = training_step(config, {"clip": clip}, config.optim, mesh)
    found = step.lower(*arguments).compile().memory_analysis()
    assert found is not None, "no backend of ours leaves it open"
    return own | {
        "arguments of the step": found.argument_size_in_bytes,
        "temporaries of the step": found.temp_size_in_bytes,
    }


def memory(options: Memory) -> None:
    """Print the table."""
    ranks = (0, options.rank)
    whole, own = (measure(config_of("out/none", LoRAConfig(rank=rank)), options.compiled) for rank in ranks)
    print(f"{'':26s}{'all weights':>14s}{f'rank {options.rank}':>14s}{'share':>9s}")
    both = "optimiser and gradient"
    for each in (whole, own):
        each[both] = each["optimiser"] + each["gradient"]
    for name in whole:
        print(f"{name:26s}{whole[name]:14,}{own[name]:14,}{100 * own[name] / whole[name]:8.1f} %")


def lime_scenes(split: scenes.Split, count: int, objects: int | None = None):
    """Scenes in which what was green is lime, and their captions."""
    found, index = [], 0
    while len(found) < count:
        scene, caption = scenes.example(split, index)
        index += 1
        if "green" in caption and objects in (None, len(scene.objects)):
            found.append((scene, caption.replace("green", "lime")))
    return found


def write_data(folder: Path, count: int) -> None:
    """As many pictures of lime as of other colours, with captions beside them."""
    folder.mkdir(parents=True)
    with mock.patch.dict(scenes.COLOURS, {"green": LIME}):
        rows = [(render(scene, 128), caption) for scene, caption in lime_scenes("train", count)]
    rows += [(render(scene, 128), caption) for scene, caption in (scenes.example("train", i) for i in range(count))]
    for number, (image, caption) in enumerate(rows):
        Image.fromarray(image).save(folder / f"{number:05d}.png")
        (folder / f"{number:05d}.txt").write_text(caption)


def hue_of(image: UInt8[np.ndarray, "h w 3"]) -> float:
    """The middle hue of the saturated pixels in degrees; NaN where there are next to none."""
    hsv = np.asarray(Image.fromarray(image).convert("HSV"), float)
    hues = hsv[..., 0][(hsv[..., 1] > 110) & (hsv[..., 2] > 90)] * 360 / 255
    return float(np.median(hues)) if hues.size > 20 else math.nan


def judge(system: System, options: Teach) -> dict[str, float]:
    """The share of lime pictures, and of all the others that are right."""
    limes = [caption for _, caption in lime_scenes("test_seen", options.prompts // 2, objects=1)]
    groups = {name: cases(*which, options.prompts // len(GROUPS)) for name, which in GROUPS.items()}
    others = [case.caption for group in groups.values() for case in group]
    images = text_to_image(system, limes + others, seed=0, stop_at=32, batch_size=32)
    target = hue_of(np.full((8, 8, 3), LIME, np.uint8))
    hues = np.array([hue_of(image) for image in images[: len(limes)]])
    table = evaluate(images[len(limes) :], groups)
    return {
        "lime": float(np.mean(np.abs(hues - target) < 12)),
        **{name: table[name]["all"] for name in groups},
        "colour of others": float(np.mean([table[name]["colour"] for name in groups])),
        "all of others": float(np.mean([table[name]["all"] for name in groups])),
    }


def teach(options: Teach) -> None:
    """Train, judge before and after, and print the table."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.workdir or Path(temporary) / "run"
        write_data(folder.with_name(f"{folder.name}_data"), options.pictures)
        optim = OptimConfig(learning_rate=2e-3, warmup_steps=20, schedule="cosine", ema_decay=0.98)
        config = config_of(
            str(folder),
            LoRAConfig(rank=options.rank),
            data=DataConfig(source=str(folder.with_name(f"{folder.name}_data")), batch_size=32),
            optim=optim,
            # A prior that has never met the word says nothing of the colour, so the caption has to.
            drop_z_i=0.5,
            drop_caption=0.1,
        )
        run = dataclasses.replace(config.run, steps=options.steps, save_every=options.steps)
        start = time.perf_counter()
        train(dataclasses.replace(config, run=run))
        seconds = time.perf_counter() - start
        file = write(folder, folder / "lime.safetensors", overwrite=True)
        system = store.load("demo")
        before, after = (judge(each, options) for each in (system, adapted(system, [str(file)], store.find("demo"))))
        print(f"{options.steps} steps in {seconds / 60:.1f} minutes, a file of {file.stat().st_size / 1e6:.1f} MB")
    print(f"{'':42s}{'demo':>9s}{'adapted':>9s}")
    for name, value in before.items():
        print(f"{name:42s}{100 * value:8.1f} %{100 * after[name]:7.1f} %")


def main() -> None:
    """Read the options and measure."""
    kinds = Annotated[Memory, tyro.conf.subcommand("memory")] | Annotated[Teach, tyro.conf.subcommand("teach")]
    options = command_line.parse(kinds, description=__doc__)
    compilation_cache.enable()
    if isinstance(options, Memory):
        memory(options)
    else:
        teach(options)


if __name__ == "__main__":
    run_cli(main)
