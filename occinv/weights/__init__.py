"""Imports checkpoints of other libraries as workdirs, and exports encoders to other libraries.

import_weights.py, export_weights.py   the two public functions
import_vit.py, import_dalle.py         parameters and config of a ViT, or of DALL·E's tokenizer
checkpoint_file.py, torch_file.py      reading of PyTorch, safetensors and npz files
find_vit.py                            which keys of a checkpoint belong to the ViT, by origin
pytorch_names.py, big_vision_names.py  conversions between names and layouts
encoder_only.py                        objectives of imported workdirs, which have no loss
import_report.py                       used, ignored and missing keys, and assumed values
"""

from typing import Literal

Origin = Literal["mae", "mocov3", "dino", "timm", "big_vision", "dalle"]
Target = Literal["timm", "big_vision"]
