"""Evaluators: measurements and pictures of trained encoders."""
