"""What a run would need on a TPU slice, found with the TPU's compiler on a machine without one."""
