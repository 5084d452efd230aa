"""Images and captions: sources of records, tokens, batches, and the low-resolution condition.

Everything but `resize` and `degrade` is numpy and Pillow and imports no JAX, so that reader processes start
fast.
"""
