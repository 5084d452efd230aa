"""What a recipe would need on a TPU slice that you do not have yet: memory, time, money. Compiles, and runs nothing.

    python -m train.plan RECIPE --topology v5e:16x16 [--mesh fsdp=64] [--batch 2048] [--fit] [--price 1.2]

RECIPE is a stage and a name, decoder/paper, or a name alone for every stage that has such a recipe. Needs libtpu, which
is a package: pip install 'unclip_jax[tpu]'.
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from unclip_jax.core import command_line
from unclip_jax.core.config import suggest
from unclip_jax.core.errors import UserError, run_cli
from unclip_jax.core.files import check_writable, write_all, write_text
from unclip_jax.core.program import program
from unclip_jax.models.base import Network
from unclip_jax.nn.remat import Remat
from unclip_jax.parallel.mesh import MeshSpec, parse_mesh
from unclip_jax.planning import report, search
from unclip_jax.planning.chips import Slice, describe
from unclip_jax.planning.plan import EFFORT, Plan, plan_training
from unclip_jax.planning.sampling import plan_sampling
from unclip_jax.planning.search import Layout
from unclip_jax.training.stage_configs import Config

from .recipes import RECIPES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Plan a recipe for a TPU slice."""

    topology: tuple[str, ...]
    """One or more slices: v5e:16x16, v5p:4x4x8, v6e:16x16, tpu7x:4x4x4; v4 as well."""
    mesh: str = ""
    """Mesh sizes instead of the recipe's, "data=4,fsdp=64"; what is left out is inferred (data) or 1."""
    batch: int | None = None
    """Examples in the global batch, instead of the recipe's."""
    accumulate: int | None = None
    """Microbatches, instead of the recipe's."""
    remat: Remat | None = None
    """What the backward pass recomputes, instead of the recipe's choice."""
    fit: bool = False
    """Search for a mesh, recomputation and microbatches that fit, from the recipe's own on."""
    mfu: float = 0.4
    """The share of the chips' peak that time and money are reckoned with."""
    price: float | None = None
    """Of one chip for an hour, in any currency."""
    sampling: int | None = None
    """Plan sampling so many images at once, as the recipe's bundle would, instead of training."""
    slices: int = 1
    """So many slices, joined by the data-centre network along the mesh axis data."""
    clip: str = "paper"
    """Recipe of the frozen CLIP that prior and decoder are conditioned by."""
    effort: float = EFFORT
    """How hard the compiler tries, -1 to 1; more takes minutes longer."""
    json: Path | None = None
    """File for everything, as JSON."""

    def __post_init__(self) -> None:
        if not 0 < self.mfu <= 1:
            raise UserError(f"mfu is {self.mfu}; give a share above 0, at most 1")
        if not self.topology:
            raise UserError("no topology given; name one, such as v5e:16x16")


@dataclasses.dataclass(frozen=True)
class Planned:
    """A plan with what it was made for."""

    name: str
    layout: report.Tried | None
    """What a search may change; None for sampling."""
    plan: Plan
    cost: report.Cost | None


def recipes_of(name: str) -> dict[str, Config]:
    """The configs that a name on the command line means, by "stage/name"; UserError where there is none."""
    every: dict[str, Callable[[], Config]] = {}
    for role, recipes in RECIPES.items():
        every |= {f"{role}/{each}": make for each, make in recipes.items()}

    def is_meant(full: str) -> bool:
        own = full.partition("/")[2]
        return name in (full, own) or own.startswith(f"{name}-")

    found = [full for full in every if is_meant(full)]
    if not found:
        raise UserError(f"no recipe {name!r}; {suggest(name, list(every))}")
    return {full: every[full]() for full in found}


def plans(options: Options, name: str, config: Any, encoders: dict[str, Network], slice_: Slice) -> Iterator[Planned]:
    """One plan, or with `fit` those that the search makes, the last of which fits."""
    config = config.fitted(encoders)
    if options.sampling is not None:
        mesh = parse_mesh(options.mesh) if options.mesh else MeshSpec()
        stage, images = config.stage(), options.sampling
        plan = plan_sampling(stage, config.sampling, encoders, slice_, mesh, images, effort=options.effort)
        yield Planned(name, None, plan, None)
        return
    batch_size = options.batch or config.data.batch_size
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=batch_size))
    start = Layout(
        mesh=dataclasses.replace(parse_mesh(options.mesh) if options.mesh else config.run.mesh, slices=options.slices),
        accumulate=options.accumulate or config.optim.accumulate,
        remat=config.model.remat if options.remat is None else options.remat,
    )

    def with_remat(remat: Remat) -> Any:
        return dataclasses.replace(config, model=dataclasses.replace(config.model, remat=remat))

    def attempt(layout: Layout) -> Plan:
        optim = dataclasses.replace(config.optim, accumulate=layout.accumulate)
        both = with_remat(layout.remat), with_remat(False)
        return plan_training(*both, encoders, optim, slice_, layout.mesh, effort=options.effort)

    def planned(plan: Plan, layout: Layout) -> Planned:
        peak = slice_.num_chips * slice_.chip.flops
        cost = report.cost_of(plan, config.run.steps, options.mfu, options.price, peak)
        return Planned(name, {"accumulate": layout.accumulate, "remat": layout.remat}, plan, cost)

    if not options.fit:
        yield planned(attempt(start), start)
        return
    state_bytes = functools.partial(search.state_bytes, with_remat(start.remat), encoders, config.optim, slice_)
    for layout, plan in search.fit(start, attempt, state_bytes, slice_):
        yield planned(plan, layout)


def main() -> None:
    """Print a page per recipe and slice, and a table where there are several."""
    name = sys.argv.pop(1) if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else ""
    if not name and not {"-h", "--help"} & set(sys.argv):
        raise UserError("no recipe given; name one first, such as decoder/paper, then options")
    options: Options = command_line.parse(Options, prog=f"{program()} RECIPE", description=__doc__)
    if options.clip not in RECIPES["clip"]:
        raise UserError(f"no recipe {options.clip!r} for the clip; {suggest(options.clip, list(RECIPES['clip']))}")
    if options.json is not None:
        check_writable([options.json], overwrite=True, option="--json")
    # Nothing runs, so whatever accelerator this machine has is left alone.
    jax.config.update("jax_platforms", "cpu")
    clip = RECIPES["clip"][options.clip]().stage().network
    recipes = recipes_of(name)
    if options.sampling is not None:
        # CLIP makes nothing.
        recipes = {full: config for full, config in recipes.items() if config.stage().writes}
        if not recipes or options.fit:
            raise UserError("only a prior, a decoder or an upsampler draws, and --fit is for training; change one")
    slices = [describe(topology, options.slices) for topology in options.topology]
    last: dict[tuple[str, str], Planned] = {}
    for slice_ in slices:
        for full, config in recipes.items():
            encoders = {each: clip for each in config.encoder_paths()}
            for planned in plans(options, full, config, encoders, slice_):
                print(report.in_words(planned.name, planned.layout, planned.plan, planned.cost), flush=True)
                last[full, slice_.name] = planned
    if len(last) > 1:
        print("\n" + report.table([(each.name, each.layout, each.plan, each.cost) for each in last.values()]))
    if options.json is not None:
        data = [report.as_json(each.name, each.layout, each.plan, each.cost) for each in last.values()]
        write_all([(options.json, functools.partial(write_text, text=json.dumps(data, indent=2) + "\n"))])
    if not all(each.plan.memory.fits for each in last.values()):
        raise UserError("not everything fits; see above, or let --fit find what does")


if __name__ == "__main__":
    run_cli(main)
