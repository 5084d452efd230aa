"""Draw with a trained bundle: `python -m sample COMMAND`, or `unclip-sample COMMAND` where it is installed."""

from unclip_jax.core import commands

if __name__ == "__main__":
    commands.main(__package__ or "sample")
