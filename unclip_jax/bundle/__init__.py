"""A trained system in a folder.

    config.json            every network and stage in the order in which they run, licence, settings, checksums
    clip.safetensors       one file of weights per network; tensors are named by their path, a/b/kernel
    prior.safetensors      also holds the statistics of z_i, as stats/mean and stats/std
    decoder.safetensors
    upsampler_0.safetensors, ...
    tokenizer/             how captions become tokens
    basis.safetensors      principal components of z_i, where they were measured
    adapters/              low-rank adapters that it carries, by name; they are used where a request says so

Only the specs decide what the networks look like: a file whose tensors do not match them name by name and
shape by shape is refused, and so are parts that were not trained for each other.
"""

from unclip_jax.bundle.store import find, load, save

__all__ = ["find", "load", "save"]
