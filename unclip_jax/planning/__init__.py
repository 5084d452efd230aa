"""The needs of a run on chips that are not here: memory, FLOPs, traffic, time, money."""
