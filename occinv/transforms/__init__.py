"""T: what invariance to learn. Keyed, batched transformations that run on the device."""
