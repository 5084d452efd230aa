"""What a trained network does in a system: its loss and its sampling."""
