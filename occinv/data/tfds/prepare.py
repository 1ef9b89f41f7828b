"""Prepares a data set for training from its archives: `occinv data prepare`.

The builder of tensorflow_datasets does the work. ImageNet's builder needs TensorFlow only to open
files and to convert the 23 images that are not RGB JPEGs. Python and Pillow do that here, so
nothing needs TensorFlow.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from array_record.python.array_record_data_source import ArrayRecordDataSource

from occinv.data.decode import open_image
from occinv.data.tfds.prepared import FORMATS, first_line, formats, require_disk
from occinv.data.tfds.source import find_builder
from occinv.data.tfds.tfrecord import write_records
from occinv.schema import UserError, nearest

TARS = {"train": "ILSVRC2012_img_train.tar", "validation": "ILSVRC2012_img_val.tar"}


def prepare(name: str, data_dir: str | None, manual_dir: str | None, file_format: str) -> Path:
    """Prepare a data set of tensorflow_datasets, unless it exists already.

    It appears whole or not at all: all files are written into a folder `incomplete.…` first.

    Args:
      name: As in `tfds:NAME`; `imagenet2012` is made of the two archives TARS.
      data_dir: Folder of data sets; None is TFDS_DATA_DIR or ~/tensorflow_datasets.
      manual_dir: Folder of the archives, if the data set needs any.
      file_format: One of FORMATS.

    Returns:
      The folder of the data set.

    Raises:
      UserError: An archive is missing, damaged or another one, the disk is too small, the data set
        is unknown, or it exists in another format.
    """
    import tensorflow_datasets as tfds

    if file_format not in FORMATS:
        raise UserError(f"--format {file_format!r} is unknown{nearest(file_format, FORMATS)}")
    require_disk(data_dir)
    builder = _builder(name, data_dir)
    target, root = Path(builder.data_path), Path(builder.data_dir_root)
    if builder.info.splits:
        if file_format not in (found := formats(builder)):
            raise UserError(
                f"{target} exists already, as {', '.join(found)}. Choose another --data-dir; "
                "occinv data convert makes array_record of tfrecord."
            )
        return target
    if name == "imagenet2012":
        _check_archives(manual_dir, target)
    config = tfds.download.DownloadConfig(manual_dir=manual_dir)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="incomplete.", dir=root) as folder:
            builder = _builder(name, folder)
            # tfds needs TensorFlow to write TFRecord, and its hook for another writer is private
            # (_example_writer). So it always writes ArrayRecord, which is rewritten.
            builder.download_and_prepare(
                download_dir=root / "downloads", download_config=config, file_format="array_record"
            )
            if file_format == "tfrecord":
                _rewrite_as_tfrecord(Path(builder.data_path))
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(builder.data_path, target)
    except UserError:
        raise
    except Exception as error:  # of the disk, tarfile, array_record, or the builder
        raise UserError(f"{name} cannot be prepared in {target}: {first_line(error)}") from error
    return target


def _builder(name: str, data_dir: str | None) -> Any:
    if name == "imagenet2012":
        return _imagenet2012()(data_dir=data_dir)
    return find_builder(name, data_dir)


def _check_archives(manual_dir: str | None, target: Path) -> None:
    if manual_dir is None:
        raise UserError(f"--manual-dir is missing: the folder of {' and '.join(TARS.values())}")
    archives = [Path(manual_dir) / name for name in TARS.values()]
    for archive in archives:
        if not archive.is_file():
            raise UserError(f"there is no {archive}. Download it from image-net.org.")
    # tensorflow_datasets shuffles through the disk: all records exist twice for a while.
    need = 2 * sum(archive.stat().st_size for archive in archives)
    free = shutil.disk_usage(next(path for path in target.parents if path.exists())).free
    if free < need:
        raise UserError(f"{target} has {free / 1e9:.1f} GB free, expected {need / 1e9:.1f} or more")


def _rewrite_as_tfrecord(folder: Path) -> None:
    """Rewrite the ArrayRecord files of a data set one by one; names and order stay."""
    for file in folder.glob("*.array_record-*"):
        with ArrayRecordDataSource([str(file)]) as records:
            contents = (records[number] for number in range(len(records)))
            write_records(folder / file.name.replace(".array_record", ".tfrecord"), contents)
        file.unlink()
    description = folder / "dataset_info.json"
    info = json.loads(description.read_text()) | {"fileFormat": "tfrecord"}
    description.write_text(json.dumps(info, indent=2))


def _imagenet2012() -> Any:
    """Return a subclass of ImageNet's builder that opens archives and converts images itself."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.datasets.imagenet2012 import imagenet2012_dataset_builder as official

    class Builder(official.Builder, skip_registration=True):  # type: ignore[call-arg]
        name, __module__ = official.Builder.name, official.__name__

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            train, validation = (Path(dl_manager.manual_dir) / name for name in TARS.values())
            labels = _validation_labels(validation)
            return {
                "train": self._generate_examples(self._train_images(train)),
                "validation": self._generate_examples(
                    (labels[name], name, image) for name, image in _members(validation)
                ),
            }

        def _generate_examples(self, images: Iterator[tuple[str, str, IO[bytes]]]) -> Iterator[Any]:
            for wnid, name, image in images:
                if name in (*official.CMYK_IMAGES, *official.PNG_IMAGES):
                    opened = open_image(image.read())
                    image = io.BytesIO()
                    opened.convert("RGB").save(image, "JPEG", quality=100)
                    image.seek(0)
                yield name, {"file_name": name, "image": image, "label": wnid}

        def _train_images(self, archive: Path) -> Iterator[tuple[str, str, IO[bytes]]]:
            wnids = self.info.features["label"].names
            for tar_name, tar in _members(archive):
                wnid = tar_name.removesuffix(".tar")
                if wnid not in wnids:
                    raise UserError(f"{archive} has {tar_name!r}, expected such as n01440764.tar")
                for name, image in tfds.download.iter_archive(io.BytesIO(tar.read()), as_tar):
                    yield wnid, name, image

    as_tar = tfds.download.ExtractMethod.TAR_STREAM

    def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
        with archive.open("rb") as file:
            yield from tfds.download.iter_archive(file, as_tar)

    def _validation_labels(archive: Path) -> dict[str, str]:
        """Return the class of each image by its number: line n of a list has the class of n."""
        labels = (
            tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt").read_text().split()
        )
        with tarfile.open(archive) as tar:
            names = [member.name for member in tar if member.isfile()]
        found = {}
        for name in names:
            number = re.fullmatch(r"ILSVRC2012_val_(\d{8})\.JPEG", name)
            if number is None or not 1 <= int(number[1]) <= len(labels):
                raise UserError(
                    f"{archive} has {name!r}, expected ILSVRC2012_val_00000001.JPEG to "
                    f"ILSVRC2012_val_{len(labels):08}.JPEG"
                )
            found[name] = labels[int(number[1]) - 1]
        return found

    return Builder
