"""What the training commands share: a recipe by name, its fields as options."""

import dataclasses
import sys
from typing import Any

import tyro

from unclip_jax.core import command_line, compilation_cache
from unclip_jax.core.config import suggest
from unclip_jax.core.errors import UserError
from unclip_jax.diffusion import AnyProcessSpec, EDMSpec, FlowSpec
from unclip_jax.parallel import distributed
from unclip_jax.training.stage_configs import Config

from .recipes import RECIPES


def read(stage: str, description: str | None) -> Config:
    """Read `RECIPE [--process {edm,flow}] [--field.sub value]`, and join the processes of the run."""
    recipes = RECIPES[stage]
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if not name or (name.startswith("-") and name not in ("-h", "--help")):
        raise UserError(f"no recipe given; name one first, then options: {', '.join(recipes)}")
    if name not in recipes and not name.startswith("-"):
        raise UserError(f"no recipe {name!r} for the {stage}; {suggest(name, list(recipes))}")
    process = _process(sys.argv)
    form = tyro.extras.subcommand_type_from_defaults(
        {name: _with_process(recipe(), process) for name, recipe in recipes.items()},
        {name: recipe.__doc__ or "" for name, recipe in recipes.items()},
        sort_subcommands=False,
    )
    config = command_line.parse(form, description=description)
    compilation_cache.enable()
    distributed.start(config.run.cluster)
    return config


PROCESSES = {"edm": EDMSpec(), "flow": FlowSpec()}


def _process(arguments: list[str]) -> AnyProcessSpec | None:
    """What `--process NAME`, which is taken out, asks for instead of the recipe's own process."""
    for index, word in enumerate(arguments):
        option, equals, name = word.partition("=")
        if option != "--process":
            continue
        if not equals:
            name = arguments[index + 1] if index + 1 < len(arguments) else ""
        if name not in PROCESSES:
            raise UserError(f"--process is {name!r}; choose {' or '.join(PROCESSES)}, or leave it out for the recipe's")
        del arguments[index : index + (1 if equals else 2)]
        return PROCESSES[name]
    return None


def _with_process(config: Any, process: AnyProcessSpec | None) -> Any:
    """The recipe with another process, and what only its own process had a use for at its default."""
    if process is None:
        return config
    if not hasattr(config, "process"):
        raise UserError("--process is for what is trained by diffusion; leave it out")
    sampling = dataclasses.replace(config.sampling, sampler="ddim", spacing="linspace", guidance_interval=None)
    model = config.model
    if getattr(model, "learned_sigma", False):
        model = dataclasses.replace(model, learned_sigma=False)
    return dataclasses.replace(config, model=model, process=process, sampling=sampling, weighting="none")
