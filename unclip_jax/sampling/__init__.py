"""Systems at work: sessions, captions, batches, and the provenance of pictures."""

from unclip_jax.sampling.session import Progress, Request, Session
from unclip_jax.sampling.text_to_image import text_to_embedding, text_to_image

__all__ = ["Progress", "Request", "Session", "text_to_embedding", "text_to_image"]
