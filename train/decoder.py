"""Train the decoder: from CLIP's embedding of an image, and its caption, to pixels. Needs a trained CLIP.

python -m train.decoder RECIPE [--process {edm,flow}] [--field.sub value]

--process trains for another diffusion than the recipe's; its own settings are then --process.NAME.
"""

from . import cli


def main() -> None:
    """Read the recipe and the options, and train."""
    cli.main("decoder", __doc__ or "")


if __name__ == "__main__":
    main()
