"""How long drawing takes with one sampler or another: the whole cascade, compiled, ways in turn.

    python -m benchmarks.samplers [--bundle demo] [--images 4] [--rounds 5]

The first way is DDIM with as many steps as the paper takes: 64 for the prior, 250 for the decoder, 27 and 15 for the
upsamplers (2204.06125, table 3). All ways share guidance and whatever else the bundle says.
"""

import dataclasses
import platform
import time

import jax
import numpy as np

from unclip_jax.bundle import store
from unclip_jax.core import command_line
from unclip_jax.core.errors import UserError, run_cli
from unclip_jax.sampling.text_to_image import text_to_image
from unclip_jax.stages.settings import SamplerName, SamplingSettings
from unclip_jax.systems.system import System

PAPER_STEPS = {"prior": 64, "decoder": 250, "upsampler_0": 27, "upsampler_1": 15}
DECODER_WAYS: tuple[tuple[SamplerName, int], ...] = (("ddim", 50), ("dpm++", 25), ("dpm++", 12))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Time the cascade with several samplers."""

    bundle: str = "demo"
    """A bundle's folder, or the name of a shipped one."""
    images: int = 4
    """Images drawn at once."""
    rounds: int = 5
    """How often each way is timed, all of them in turn."""

    def __post_init__(self) -> None:
        for name in ("images", "rounds"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be 1 or more")


def ways(system: System) -> dict[str, dict[str, SamplingSettings]]:
    """Settings of every stage, by what the way is called; the paper's first."""
    own = system.settings([])
    paper = {
        name: dataclasses.replace(each, sampler="ddim", steps=PAPER_STEPS[name])
        for name, each in own.items()
        if name in PAPER_STEPS
    }
    found = {"DDIM, steps as in the paper": own | paper, "as the bundle says": own}
    for sampler, steps in DECODER_WAYS:
        decoder = dataclasses.replace(own["decoder"], sampler=sampler, steps=steps)
        found[f"the same, decoder {sampler} {steps}"] = own | {"decoder": decoder}
    return found


def main() -> None:
    """Print a table, one row a way."""
    options: Options = command_line.parse(Options, prog="python -m benchmarks.samplers", description=__doc__)
    bundle = store.load(options.bundle)
    captions = ["a red circle above a blue square"] * options.images
    chosen = ways(bundle)
    seconds: dict[str, list[float]] = {name: [] for name in chosen}
    for counted in range(-1, options.rounds):
        for name, settings in chosen.items():
            start = time.perf_counter()
            text_to_image(bundle, captions, seed=0, settings=settings, batch_size=options.images)
            # The first round compiles.
            if counted >= 0:
                seconds[name].append(time.perf_counter() - start)
    print(f"{platform.platform()}, {jax.device_count()} x {jax.devices()[0].device_kind}, jax {jax.__version__}")
    print(f"bundle {options.bundle}, {options.images} images a call, {options.rounds} rounds\n")
    columns = ["sampling", "evaluations by stage", "seconds, median (range)", "of the first, median (range)"]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    first = np.array(next(iter(seconds.values())))
    for name, settings in chosen.items():
        own = np.array(seconds[name])
        share = own / first
        steps = " + ".join(str(each.steps) for each in settings.values())
        print(
            f"| {name} | {steps} | {np.median(own):.2f} ({own.min():.2f}-{own.max():.2f}) "
            f"| {np.median(share):.2f} ({share.min():.2f}-{share.max():.2f}) |"
        )


if __name__ == "__main__":
    run_cli(main)
