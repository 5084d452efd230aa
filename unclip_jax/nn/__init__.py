"""Layers: what the networks of `unclip_jax.models` are built from."""
