"""Train the prior: from a caption to CLIP's embedding of an image of it. Needs a trained CLIP.

python -m train.prior RECIPE [--process {edm,flow}] [--field.sub value]

--process trains for another diffusion than the recipe's; its own settings are then --process.NAME.
"""

from . import cli


def main() -> None:
    """Read the recipe and the options, and train."""
    cli.main("prior", __doc__ or "")


if __name__ == "__main__":
    main()
