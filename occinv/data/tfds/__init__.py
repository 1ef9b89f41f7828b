"""Data sets that tensorflow_datasets has prepared: make, check, convert, read."""
