"""Train the prior: from a caption to CLIP's embedding of an image of it. Needs a trained CLIP.

python -m train.prior RECIPE [--field.sub value]
"""

from train import cli
from unclip_jax.training.stages.prior import train_prior

if __name__ == "__main__":
    cli.main("prior", __doc__ or "", train_prior)
