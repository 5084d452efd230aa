"""unCLIP (DALL-E 2) in JAX: train it, sample it, and compare it number for number with PyTorch."""

__version__ = "0.1.0"
