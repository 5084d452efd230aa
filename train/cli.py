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
from unclip_jax.training.origin import starting_from
from unclip_jax.training.stage_configs import Config

from .recipes import RECIPES


def read(stage: str, description: str | None) -> Config:
    """Read `RECIPE [--process {edm,flow}] [--field.sub value]`, and join the processes of the run.

    With `--start-from` the recipe has the network, the process and more of these weights; other options come on top.
    """
    recipes = RECIPES[stage]
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if not name or (name.startswith("-") and name not in ("-h", "--help")):
        raise UserError(f"no recipe given; name one first, then options: {', '.join(recipes)}")
    if name not in recipes and not name.startswith("-"):
        raise UserError(f"no recipe {name!r} for the {stage}; {suggest(name, list(recipes))}")
    process = _process(sys.argv)
    configs = {each: recipe() for each, recipe in recipes.items()}
    if (start := _option(sys.argv, "--start-from")) and name in configs:
        configs[name] = _with_weights(configs[name], start, sys.argv)
    form = tyro.extras.subcommand_type_from_defaults(
        {each: _with_process(config, process) for each, config in configs.items()},
        {name: recipe.__doc__ or "" for name, recipe in recipes.items()},
        sort_subcommands=False,
    )
    config = command_line.parse(form, description=description)
    compilation_cache.enable()
    distributed.start(config.run.cluster)
    return config


def _with_weights(config: Config, start: str, arguments: list[str]) -> Config:
    """The recipe with what weights decide as they have it (`starting_from`)."""
    size, workdir = (_option(arguments, f"--{name}") for name in ("model.image-size", "run.workdir"))
    if workdir:
        config = dataclasses.replace(config, run=dataclasses.replace(config.run, workdir=workdir))  # pyright: ignore
    return starting_from(config, start, writes=f"image_{size}" if size else None)


def _option(arguments: list[str], name: str) -> str | None:
    """The value of an option, which is left where it is."""
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        option, equals, value = word.partition("=")
        if option.replace("_", "-") == name:
            return value if equals else following
    return None


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
    if type(config.process) is type(process):
        return config
    sampling = dataclasses.replace(config.sampling, sampler="ddim", spacing="linspace", guidance_interval=None)
    model = config.model
    if getattr(model, "learned_sigma", False):
        model = dataclasses.replace(model, learned_sigma=False)
    return dataclasses.replace(config, model=model, process=process, sampling=sampling, weighting="none")
