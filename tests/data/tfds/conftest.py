"""A little ImageNet, as archives and prepared from them in both formats."""

import functools
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from imagenet_tars import held_out_files, train_files, write_tars

from occinv.data.tfds.prepare import prepare
from occinv.data.tfds.prepared import FORMATS


@pytest.fixture(scope="session")
def tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of both archives: 14 images to train on and 8 held out, of 4 classes."""
    tfds.disable_progress_bar()
    folder = tmp_path_factory.mktemp("archives") / "tars"
    return write_tars(folder, train_files(3), held_out_files(2))


@pytest.fixture(scope="session")
def imagenet(tars: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of data sets for each format, in three files a split; for reading only."""
    folder = tmp_path_factory.mktemp("tfds")
    in_three = functools.partial(tfds.download.DownloadConfig, num_shards=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tfds.download, "DownloadConfig", in_three)
        for file_format in FORMATS:
            prepare("imagenet2012", str(folder / file_format), str(tars), file_format)
    return folder
