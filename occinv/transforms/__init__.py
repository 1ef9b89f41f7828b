"""T: transformations of images on the device. Each is drawn by the PRNG key of its image."""
