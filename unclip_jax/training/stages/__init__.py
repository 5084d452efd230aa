"""The four stages: for each its config, its loss as a `Stage`, and the run that trains it."""
