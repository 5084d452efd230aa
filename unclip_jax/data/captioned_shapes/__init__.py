"""Captioned shapes: scenes and their captions, the renderer, and the data set made of both."""
