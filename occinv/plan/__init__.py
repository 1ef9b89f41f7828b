"""Compute what a run needs on TPUs or GPUs. It uses their compilers and needs no accelerator."""
