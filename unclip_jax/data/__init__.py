"""Images and captions: sources of records, and batches of them.

It is numpy and Pillow and imports no JAX, so that reader processes start fast.
"""

from unclip_jax.data.config import DataConfig
from unclip_jax.data.pipeline import BatchSpec, batches
from unclip_jax.data.records import Record, Source
from unclip_jax.data.sources import open_source

__all__ = ["BatchSpec", "DataConfig", "Record", "Source", "batches", "open_source"]
