"""Train CLIP: an image and a text encoder with a common space. The other stages are conditioned on it.

python -m train.clip RECIPE [--name NAME] [--field.sub value]

--name puts the run into runs/NAME, where the other stages find it.
"""

from unclip_jax.core.errors import run_cli
from unclip_jax.training.run import train

from . import cli


def main() -> None:
    """Read the recipe and the options, and train."""
    train(cli.read("clip", __doc__))


if __name__ == "__main__":
    run_cli(main)
