"""Imports checkpoints of other libraries as workdirs, and exports encoders to other libraries.

import_weights.py, export_weights.py   the two public functions
import_vit.py, import_dalle.py         parameters and config of a ViT, or of DALL·E's tokenizer
checkpoint_file.py                     reading of PyTorch, safetensors and npz files, and of folders
torch_file.py, pickle_reader.py        PyTorch's file formats, without running code
model_config.py                        config files of transformers and timm beside the weights
find_vit.py                            which keys of a checkpoint belong to a ViT, and its origin
pytorch_names.py, big_vision_names.py  conversions between names and layouts
library_names.py                       names of transformers and mmpretrain
grids.py                               the grid of a position embedding, and fixed embeddings
encoder_only.py                        objectives of imported workdirs, which have no loss
import_report.py                       used, ignored and missing keys, and assumed values
"""

from typing import Literal

Origin = Literal[
    "auto",
    "mae",
    "mocov3",
    "dino",
    "dinov2",
    "ijepa",
    "beit",
    "timm",
    "huggingface",
    "mmpretrain",
    "big_vision",
    "dalle",
]
Target = Literal["timm", "huggingface", "big_vision"]
