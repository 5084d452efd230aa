"""Train CLIP: an image and a text encoder with a common space. The other stages are conditioned on it.

python -m train.clip RECIPE [--field.sub value]
"""

from . import cli


def main() -> None:
    """Read the recipe and the options, and train."""
    cli.main("clip", __doc__ or "")


if __name__ == "__main__":
    main()
