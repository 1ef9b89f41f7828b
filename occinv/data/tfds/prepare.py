"""From the archives of a data set to the records that training reads: `occinv data prepare`.

tensorflow_datasets does the work, by the builder of the data set. ImageNet's asks TensorFlow for
three things only (to open a file, and to convert the 23 images that are no RGB JPEG), which Python
and Pillow do as well: so nothing here needs TensorFlow, as reading does not.
"""

from __future__ import annotations

import io
import re
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from PIL import Image

from occinv.data.tfds.prepared import FORMATS, formats, require_disk
from occinv.data.tfds.source import find_builder
from occinv.data.tfds.tfrecord import write_records
from occinv.schema import UserError, nearest

TARS = {"train": "ILSVRC2012_img_train.tar", "validation": "ILSVRC2012_img_val.tar"}


def prepare(name: str, data_dir: str | None, manual_dir: str | None, file_format: str) -> Path:
    """Prepares a data set of tensorflow_datasets, unless it is there already.

    It appears whole or not at all: until then it is a folder `incomplete.…`.

    name: as in `tfds:NAME`; `imagenet2012` is made of the two archives TARS.
    data_dir: where data sets lie; None for TFDS_DATA_DIR or ~/tensorflow_datasets.
    manual_dir: where the archives lie, if any are asked for.
    file_format: one of FORMATS.

    Returns: the folder of the data set.
    Raises: UserError for an archive that is missing, damaged or something else, a disk that is too
    small, and a data set that nobody knows or that is there in another format.
    """
    import tensorflow_datasets as tfds

    if file_format not in FORMATS:
        raise UserError(f"--format {file_format!r} is no format{nearest(file_format, FORMATS)}")
    require_disk(data_dir)
    own = name == "imagenet2012"
    builder = _imagenet2012()(data_dir=data_dir) if own else find_builder(name, data_dir)
    if builder.info.splits:
        if file_format not in (there := formats(builder)):
            raise UserError(
                f"{builder.data_path} is there already, as {', '.join(there)}; occinv data convert "
                "makes array_record of tfrecord"
            )
        return Path(builder.data_path)
    if own:
        _check_archives(manual_dir, Path(builder.data_path))
    if file_format == "tfrecord":
        builder._example_writer = lambda: _tfrecord_writer(builder.info.file_format)
    config = tfds.download.DownloadConfig(manual_dir=manual_dir)
    try:
        builder.download_and_prepare(download_config=config, file_format=file_format)
    except UserError:
        raise
    except Exception as error:  # the disk's, tarfile's, array_record's, the builder's own
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{name} cannot be prepared in {builder.data_path}: {first_line}"
        ) from error
    return Path(builder.data_path)


def _check_archives(manual_dir: str | None, target: Path) -> None:
    if manual_dir is None:
        raise UserError(f"--manual-dir is missing: the folder of {' and '.join(TARS.values())}")
    archives = [Path(manual_dir) / name for name in TARS.values()]
    for archive in archives:
        if not archive.is_file():
            raise UserError(f"there is no {archive}: get it from image-net.org")
    # tensorflow_datasets shuffles through the disk: all records are there twice for a while.
    need = 2 * sum(archive.stat().st_size for archive in archives)
    free = shutil.disk_usage(next(path for path in target.parents if path.exists())).free
    if free < need:
        raise UserError(f"{target} has {free / 1e9:.1f} GB free, expected {need / 1e9:.1f} or more")


def _imagenet2012() -> Any:
    """The builder of tensorflow_datasets, which here opens archives and converts images itself."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.datasets.imagenet2012 import imagenet2012_dataset_builder as official

    class Builder(official.Builder, skip_registration=True):  # type: ignore[call-arg]
        name, __module__ = official.Builder.name, official.__name__

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            train, validation = (Path(dl_manager.manual_dir) / name for name in TARS.values())
            return {
                "train": self._generate_examples(self._classes(train)),
                "validation": self._generate_examples(
                    _members(validation), _validation_labels(validation)
                ),
            }

        def _classes(self, archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
            wnids = self.info.features["label"].names
            for name, file in _members(archive):
                if name.removesuffix(".tar") not in wnids:
                    raise UserError(f"{archive} has {name!r}, expected n01440764.tar and the like")
                yield name, file

        def _fix_image(self, image_fname: str, image: IO[bytes]) -> IO[bytes]:
            if image_fname not in (*official.CMYK_IMAGES, *official.PNG_IMAGES):
                return image
            converted = io.BytesIO()
            opened = Image.open(io.BytesIO(image.read()))
            opened.convert("RGB").save(converted, "JPEG", quality=100)
            converted.seek(0)
            return converted

    def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
        with archive.open("rb") as file:
            yield from tfds.download.iter_archive(file, tfds.download.ExtractMethod.TAR_STREAM)

    def _validation_labels(archive: Path) -> dict[str, str]:
        """The class of each image, by the number in its name: the list has one a line."""
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


def _tfrecord_writer(file_format: Any) -> Any:
    import tensorflow_datasets as tfds

    class Writer(tfds.core.ExampleWriter):
        def write(self, path: Any, examples: Any) -> None:
            write_records(path, (content for _, content in examples))

    return Writer(file_format)
