"""Training: the state, one step for every stage, the loop, checkpoints and metrics."""
