"""Train CLIP: an image and a text encoder with a common space. The other stages listen to it.

python -m train.clip RECIPE [--field.sub value]
"""

from train import cli
from unclip_jax.training.stages.clip import train_clip

if __name__ == "__main__":
    cli.main("clip", __doc__ or "", train_clip)
