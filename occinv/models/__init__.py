"""f: the vision transformer, from pixels to tokens."""
