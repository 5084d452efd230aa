"""Placing pytrees on devices: a mesh, rules from parameter paths to shardings, one compiled step."""
