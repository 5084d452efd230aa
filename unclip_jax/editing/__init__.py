"""Editing images through their latents: pure functions on a system, without files."""

from unclip_jax.editing.embeddings import embed_captions, embed_images, slerp, tokenise
from unclip_jax.editing.inversion import inversion_settings
from unclip_jax.editing.latents import Latents, decoding_request, encode_files, encode_latents
from unclip_jax.editing.outpainting import Margins, outpaint
from unclip_jax.editing.probing import basis_of, fit_basis, project

__all__ = [
    "Latents",
    "Margins",
    "basis_of",
    "decoding_request",
    "embed_captions",
    "embed_images",
    "encode_files",
    "encode_latents",
    "fit_basis",
    "inversion_settings",
    "outpaint",
    "project",
    "slerp",
    "tokenise",
]
