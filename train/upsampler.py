"""Train an upsampler: from a small image to a larger one. Needs images only.

python -m train.upsampler RECIPE [--field.sub value]
"""

from train import cli
from unclip_jax.training.stages.upsampler import train_upsampler

if __name__ == "__main__":
    cli.main("upsampler", __doc__ or "", train_upsampler)
