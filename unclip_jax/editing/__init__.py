"""What one does with an image once it is an embedding: pure functions on a bundle, as `unclip_jax.cascade` is."""
