"""Train an upsampler: from a small image to a larger one. Needs images only.

python -m train.upsampler RECIPE [--name NAME] [--process {edm,flow}] [--field.sub value]

--name puts the run into runs/NAME, where those of the other stages are.
--process trains for another diffusion than the recipe's; its own settings are then --process.NAME.
"""

from unclip_jax.core.errors import run_cli
from unclip_jax.training.run import train

from . import cli


def main() -> None:
    """Read the recipe and the options, and train."""
    train(cli.read("upsampler", __doc__))


if __name__ == "__main__":
    run_cli(main)
