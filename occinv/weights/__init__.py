"""Other people's checkpoints, in and out.

container.py, torch_file.py, pickled.py   a file's arrays by name, without running anything in it
selection.py, big_vision.py               the ViT among them, under the official PyTorch names
translation.py, fixed_position.py         these names and layouts, and our tree; sizes from shapes
dalle.py                                  the one file that holds a tokenizer, not a ViT
imported.py, importing.py, exporting.py   a workdir from a file, a file from a workdir
listing.py                                what was used, ignored, missing and assumed, in words
"""

from typing import Literal

Origin = Literal["mae", "mocov3", "dino", "timm", "big_vision", "dalle"]
Target = Literal["timm", "big_vision"]
