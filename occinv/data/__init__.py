"""Images from where they lie to batches: sources, the order of samples, decoding, crops, loaders.

Read `loader.py` first. Import names from the module that defines them.
"""
