"""Link the images of the study (docs/study.md): 400 of each class for training, 150 for validation.

    python benchmarks/_study_data.py tiny_imagenet_20 runs/study/images

The source has the folders train/CLASS with 500 images and val/CLASS with 50, as Tiny ImageNet does
once its validation images are in folders. In each class, the last 100 training images in the order
of their names become validation images, so that a difference of accuracies has less noise.
"""

import sys
from pathlib import Path

HELD_OUT = 100  # training images of a class


def main(source: str, target: str) -> None:
    """Write the folders of links."""
    root = Path(source).resolve()
    for folder in sorted((root / "train").iterdir()):
        images = sorted(folder.iterdir())
        parts = {
            "train": images[:-HELD_OUT],
            "val": [*images[-HELD_OUT:], *sorted((root / "val" / folder.name).iterdir())],
        }
        for part, members in parts.items():
            into = Path(target) / part / folder.name
            into.mkdir(parents=True)
            for image in members:
                (into / image.name).symlink_to(image)


if __name__ == "__main__":
    main(*sys.argv[1:])
