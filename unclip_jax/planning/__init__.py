"""What a run would need on chips that are not here: memory, FLOPs, traffic, time, money."""
