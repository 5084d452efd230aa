"""Train the decoder: from CLIP's embedding of an image, and its caption, to pixels. Needs a trained CLIP.

python -m train.decoder RECIPE [--field.sub value]
"""

from train import cli
from unclip_jax.training.stages.decoder import train_decoder

if __name__ == "__main__":
    cli.main("decoder", __doc__ or "", train_decoder)
