"""Metrics: how good generated images are, and whether they show what their captions say."""
