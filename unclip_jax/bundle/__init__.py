"""A trained system: networks, tokenizer and sampling defaults, in memory and in a folder.

    config.json            every part's spec and process, the licence, sampling defaults, checksums
    clip.safetensors       one file of weights per part; tensors are named by their path, a/b/kernel
    prior.safetensors      also holds the statistics of z_i, as stats/mean and stats/std
    decoder.safetensors
    upsampler_0.safetensors, upsampler_1.safetensors, ...   in the order in which they are applied
    tokenizer/             how captions become tokens

Only the specs decide what the networks look like: a file whose tensors do not match them name by name and
shape by shape is refused, and so are parts that were not trained for each other.
"""

from unclip_jax.bundle.parts import Bundle, Part, identity
from unclip_jax.bundle.store import find, load, save

__all__ = ["Bundle", "Part", "find", "identity", "load", "save"]
