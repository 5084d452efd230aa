"""Pixels: files, resizing, degradation, masks, and what is made of many of them."""
