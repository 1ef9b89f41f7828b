"""Makes this folder from the whole reference arrays: python tests/reference/trim.py FOLDER

Weights and inputs stay as they are. Gradients and trained weights lose the last 8 of their 24 bits
(an error of 8e-6, a tenth of the tests' tolerance), which zip then packs away, and
some of the large matrices are left out; MAE keeps every gradient. OCCINV_REFERENCE=FOLDER makes the
tests compare everything.
"""

import sys
from pathlib import Path

import numpy as np

ROUNDED = ("grad/", "trained/")
MATRICES = (".fc1.weight", ".fc2.weight", ".qkv.weight", ".proj.weight", "_768_14")
LEFT_OUT = {
    "mae_pretrain.npz": "trained/",
    "vit_classifier.npz": "grad/",
    "mocov3.npz": ("grad/", "momentum_after/"),
    "dino.npz": "grad/",
    "optim_and_embed.npz": "mae_sincos",
}


def rounded(value: np.ndarray) -> np.ndarray:
    """float32 with 16 bits of mantissa."""
    bits = np.ascontiguousarray(value, np.float32).view(np.uint32)
    return ((bits + 0x80) & np.uint32(0xFFFFFF00)).view(np.float32).reshape(value.shape)


for name, groups in LEFT_OUT.items():
    with np.load(Path(sys.argv[1]) / name) as file:
        kept = [n for n in file.files if not (n.startswith(groups) and n.endswith(MATRICES))]
        arrays = {n: rounded(file[n]) if n.startswith(ROUNDED) else file[n] for n in kept}
    np.savez_compressed(Path(__file__).parent / name, **arrays)
