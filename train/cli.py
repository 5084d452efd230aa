"""What the training commands share: a recipe by name, its fields as options, one line for what went wrong."""

import sys
from collections.abc import Callable
from typing import Any

import tyro

from train.recipes import RECIPES
from unclip_jax.bundle.parts import Kind
from unclip_jax.core import command_line, compilation_cache
from unclip_jax.core.config import suggest
from unclip_jax.core.errors import UserError, run_cli
from unclip_jax.parallel import distributed


def main(stage: Kind, description: str, train: Callable[[Any], Any]) -> None:
    """Reads `RECIPE [--field.sub value]` and trains."""

    def run() -> None:
        recipes = RECIPES[stage]
        name = sys.argv[1] if len(sys.argv) > 1 else ""
        if not name or (name.startswith("-") and name not in ("-h", "--help")):
            raise UserError(f"no recipe given; name one first, then options: {', '.join(recipes)}")
        if name not in recipes and not name.startswith("-"):
            raise UserError(f"no recipe {name!r} for the {stage}; {suggest(name, list(recipes))}")
        form = tyro.extras.subcommand_type_from_defaults(
            {name: recipe() for name, recipe in recipes.items()},
            {name: recipe.__doc__ or "" for name, recipe in recipes.items()},
            sort_subcommands=False,
        )
        config = command_line.parse(form, prog=f"python -m train.{stage}", description=description)
        compilation_cache.enable()
        distributed.start(config.run.cluster)
        train(config)

    run_cli(run)
