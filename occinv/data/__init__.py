"""From stored images to batches: sources, the order of samples, decoding, crops and loaders.

Read `loader.py` first. Import a name from the module that defines it.
"""
