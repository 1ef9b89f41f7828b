"""Compute what a run needs on a TPU slice. It uses the TPU's compiler and needs no TPU."""
