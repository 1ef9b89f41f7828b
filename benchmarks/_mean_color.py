"""Test how much of the CKA of full and occluded images is due to each image's mean color.

    python benchmarks/_mean_color.py runs/study/images/val WORKDIR...

It prints the CKA, with 75 % of the patches dropped, of the images' mean color itself, of untrained
encoders and of the encoders in the workdirs. Then it subtracts from the features of either view
what a linear regression predicts from the mean color of the view's visible pixels, and prints the
CKA of the rest. All images are one batch here. `occinv evaluate` uses batches of 128.
"""

import sys
from pathlib import Path

import jax
import numpy as np

import occinv
from occinv.encoder import LoadedEncoder
from occinv.evaluators.invariance import untrained
from occinv.evaluators.occlusion import draw_visible
from occinv.models.patches import patchify

RATIO, UNTRAINED = 0.75, 2
TOKENS = {"class token": lambda x: x[:, 0], "mean token": lambda x: x[:, 1:].mean(1)}


def without(features: np.ndarray, color: np.ndarray) -> np.ndarray:
    """Subtract from features [B, F] what the color [B, 3] predicts linearly."""
    inputs = np.concatenate([color, np.ones((len(color), 1))], 1)
    return features - inputs @ np.linalg.lstsq(inputs, features, rcond=None)[0]


def main(images: str, *workdirs: str) -> None:
    """Print the table."""
    encoders = {path: occinv.load_encoder(path) for path in workdirs}
    first = next(iter(encoders.values()))
    model = first.encoder
    for seed in range(UNTRAINED):
        encoders[f"untrained {seed}"] = LoadedEncoder(model, untrained(model, seed))
    files = sorted(Path(images).rglob("*.JPEG"))
    pixels = np.stack([first.preprocess(file) for file in files])
    index = np.arange(len(files), dtype=np.int32)
    drawn, _ = draw_visible(jax.random.key(0), index, first.num_patches, [RATIO])
    visible = np.asarray(drawn)[0]
    patches = np.asarray(patchify(pixels, first.patch_size), np.float64)
    colors = patches.reshape(*visible.shape, -1, 3).mean(2) / 255  # [B, N, 3]
    full = colors.mean(1)
    occluded = (colors * visible[..., None]).sum(1) / visible.sum(1, keepdims=True)
    print(f"{len(files)} images\n\n| encoder | token | CKA | without the mean color |")
    print("| --- | --- | ---: | ---: |")
    print(f"| the mean color itself | – | {occinv.cka(full, occluded):.3f} | – |")
    for name, encoder in encoders.items():
        whole, part = (encoder.intermediate(pixels, [-1], seen)[0] for seen in (None, visible))
        for token, feature in TOKENS.items():
            x, y = feature(whole), feature(part)
            rest = occinv.cka(without(x, full), without(y, occluded))
            print(f"| {name} | {token} | {occinv.cka(x, y):.3f} | {rest:.3f} |")


if __name__ == "__main__":
    main(*sys.argv[1:])
