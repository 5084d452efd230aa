"""Train the decoder: from CLIP's embedding of an image, and its caption, to pixels. Needs a trained CLIP.

python -m train.decoder RECIPE [--name NAME] [--process {edm,flow}] [--field.sub value]

--name puts the run into runs/NAME, where it finds the CLIP of that name.
--process trains for another diffusion than the recipe's; its own settings are then --process.NAME.
"""

from unclip_jax.core.errors import run_cli
from unclip_jax.training.run import train

from . import cli


def main() -> None:
    """Read the recipe and the options, and train."""
    train(cli.read("decoder", __doc__))


if __name__ == "__main__":
    run_cli(main)
