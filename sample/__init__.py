"""Commands that draw with a trained bundle."""
