"""Training: the state, the optimizer, the one step, checkpoints, and loop.py, to be read first."""
