"""Makes this folder from the whole reference arrays: python tests/reference/trim.py FOLDER [FILE …]

Weights and inputs stay as they are, except for those of DALL·E's encoder. Gradients, trained
weights and DALL·E's weights lose the last 8 of their 24 bits (an error of 8e-6, a tenth of the
tests' tolerance), which zip then packs away. Some of the large matrices are left out; MAE keeps
every gradient. Images that beit.npz has, too, and CAE's copy of its encoder are not repeated.
DALL·E keeps its first image; RandAugment two of the four pairs of level and sign.
OCCINV_REFERENCE=FOLDER makes the tests compare everything.
"""

import re
import sys
from pathlib import Path

import numpy as np

ROUNDED = {"dalle.npz": ("W/",)}
ROUNDED_EVERYWHERE = ("grad/", "trained/", "G/")
MATRICES = r"\.(fc1|fc2|qkv|proj|q|k|v)\.weight"
LEFT_OUT = {  # regular expressions of names
    "mae_pretrain.npz": rf"trained/.*{MATRICES}",
    "vit_classifier.npz": rf"grad/.*{MATRICES}",
    "mocov3.npz": rf"(grad|momentum_after)/.*{MATRICES}",
    "dino.npz": rf"grad/.*{MATRICES}",
    "optim_and_embed.npz": "mae_sincos_768_14",
    "beit.npz": rf"G/.*{MATRICES}",
    "cae.npz": rf"G/.*{MATRICES}",
    "data2vec.npz": rf"G/.*{MATRICES}",
    "ibot.npz": "",
    "ijepa.npz": rf"G/.*{MATRICES}",
    "dalle.npz": "",
    "randaugment.npz": r".*\|3\.3\|-1|.*\|9\|1",
}
FIRST_IMAGE = {"dalle.npz": ("x", "y")}


def rounded(value: np.ndarray) -> np.ndarray:
    """float32 with 16 bits of mantissa."""
    bits = np.ascontiguousarray(value, np.float32).view(np.uint32)
    return ((bits + 0x80) & np.uint32(0xFFFFFF00)).view(np.float32).reshape(value.shape)


def is_repeated(name: str, key: str, value: np.ndarray) -> bool:
    """Whether CAE or data2vec has images of BEiT, or CAE's teacher a weight of its encoder."""
    if name not in ("cae.npz", "data2vec.npz"):
        return False
    owner = name if key.startswith("W/teacher.") else "beit.npz"
    key = key.replace("W/teacher.", "W/encoder.")
    with np.load(folder / owner) as file:
        is_shared = owner == name or key in ("x", "mask", "ids")
        return is_shared and key in file and np.array_equal(value, file[key])


folder = Path(sys.argv[1])
for name in sys.argv[2:] or LEFT_OUT:
    arrays = {}
    with np.load(folder / name) as file:
        for key in file.files:
            if re.fullmatch(LEFT_OUT[name], key) or is_repeated(name, key, file[key]):
                continue
            value = file[key][:1] if key in FIRST_IMAGE.get(name, ()) else file[key]
            is_rounded = key.startswith(ROUNDED_EVERYWHERE + ROUNDED.get(name, ()))
            arrays[key] = rounded(value) if is_rounded else value
    np.savez_compressed(Path(__file__).parent / name, **arrays)
