"""Train a stage: `python -m train COMMAND`, or `unclip-train COMMAND` where it is installed."""

from unclip_jax.core import commands

if __name__ == "__main__":
    commands.main(__package__ or "train")
