"""What the training commands share: a recipe by name, its fields as options, one line for what went wrong."""

from collections.abc import Callable
from typing import Any

import tyro

from train.recipes import RECIPES
from unclip_jax import compilation_cache
from unclip_jax.errors import run_cli


def main(stage: str, description: str, train: Callable[[Any], Any]) -> None:
    """Reads `RECIPE [--field.sub value]` and trains."""

    def run() -> None:
        recipes = {name: (recipe.__doc__ or "", recipe()) for name, recipe in RECIPES[stage].items()}
        config = tyro.extras.overridable_config_cli(
            recipes, prog=f"python -m train.{stage}", description=description
        )
        compilation_cache.enable()
        train(config)

    run_cli(run)
