"""Data sets of tensorflow_datasets: prepare, check, convert and read them without TensorFlow."""
