"""Systems at work: sessions, captions, batches, and the provenance of pictures."""

from unclip_jax.sampling.session import Progress, Request, Session
from unclip_jax.sampling.tapes import read_tape, write_tape
from unclip_jax.sampling.text_to_image import text_to_embedding, text_to_image

__all__ = ["Progress", "Request", "Session", "read_tape", "text_to_embedding", "text_to_image", "write_tape"]
