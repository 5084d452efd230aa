"""Train an upsampler: from a small image to a larger one. Needs images only.

python -m train.upsampler RECIPE [--process {edm,flow}] [--field.sub value]

--process trains for another diffusion than the recipe's; its own settings are then --process.NAME.
"""

from . import cli


def main() -> None:
    """Read the recipe and the options, and train."""
    cli.main("upsampler", __doc__ or "")


if __name__ == "__main__":
    main()
