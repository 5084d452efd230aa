"""What the training commands share: a recipe by name, its fields as options."""

import dataclasses
import sys
from pathlib import PurePosixPath
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
    """Read `RECIPE [--name NAME] [--process {edm,flow}] [--field.sub value]`, and join the processes of the run.

    `--name` puts a recipe's runs into runs/NAME, where one finds the CLIP of another. With `--start-from` the recipe
    has the network, the process and more of these weights; other options come on top.
    """
    recipes = RECIPES[stage]
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if not name or (name.startswith("-") and name not in ("-h", "--help")):
        raise UserError(f"no recipe given; name one first, then options: {', '.join(recipes)}")
    if name not in recipes and not name.startswith("-"):
        raise UserError(f"no recipe {name!r} for the {stage}; {suggest(name, list(recipes))}")
    process, project = _process(sys.argv), _take(sys.argv, "--name")
    configs = {each: _with_name(recipe(), project) for each, recipe in recipes.items()}
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


def _with_name(config: Config, name: str | None) -> Config:
    """The recipe with its runs, which are in runs/SOMETHING, in runs/NAME: its own, and that of its CLIP."""
    if name is None:
        return config
    if not name or name.startswith((".", "-")) or set(name) & set("/\\"):
        raise UserError(f"--name is {name!r}; give a name for a folder, such as birds")
    folder = PurePosixPath(config.run.workdir).parent

    def renamed(where: str) -> str:
        path = PurePosixPath(where)
        return str(folder.with_name(name) / path.name) if path.parent == folder else where

    run = dataclasses.replace(config.run, workdir=renamed(config.run.workdir))
    paths = {encoder: renamed(where) for encoder, where in config.encoder_paths().items()}
    return dataclasses.replace(config, run=run, **paths)  # pyright: ignore[reportArgumentType]


PROCESSES = {"edm": EDMSpec(), "flow": FlowSpec()}


def _process(arguments: list[str]) -> AnyProcessSpec | None:
    """What `--process NAME`, which is taken out, asks for instead of the recipe's own process."""
    name = _take(arguments, "--process")
    if name is not None and name not in PROCESSES:
        raise UserError(f"--process is {name!r}; choose {' or '.join(PROCESSES)}, or leave it out for the recipe's")
    return None if name is None else PROCESSES[name]


def _take(arguments: list[str], wanted: str) -> str | None:
    """Take an option out, and return its value; "" where it has none."""
    for index, word in enumerate(arguments):
        option, equals, value = word.partition("=")
        if option == wanted:
            if not equals:
                value = arguments[index + 1] if index + 1 < len(arguments) else ""
            del arguments[index : index + (1 if equals else 2)]
            return value
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
