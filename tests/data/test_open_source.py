import os
import subprocess
import sys

import pytest
from PIL import Image

from occinv.data.open_source import open_source
from occinv.schema import UserError


def test_each_kind_opens(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "1.png")
    assert open_source("photos", train=True).name == "photos:32 (train regions)"
    assert open_source("photos:48", train=False).read(0).image.shape == (48, 48, 3)
    assert open_source("digits", train=False).name == "digits (test)"
    assert open_source(f"folder:{tmp_path}", train=True).name == f"folder:{tmp_path}"


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("photo", "did you mean 'photos'"),
        ("tdfs:mnist", "did you mean 'tfds'"),
        ("imagenet", "expected one of: arrow, digits, folder, photos, tfds"),
        ("folder:", "folder:PATH"),
        ("tfds", "tfds:NAME"),
        ("digits:8", "expected photos"),
        ("photos:large", "photos:TILE"),
        ("", "expected photos"),
        ("folder:\0", "there is no folder"),
        ("folder:" + "x" * 300, "cannot list x*: File name too long"),
        ("folder:caf\udce9", "is not UTF-8"),
        (
            os.path.dirname(__file__),
            f"is a folder. Write data.source=folder:{os.path.dirname(__file__)}",
        ),
    ],
)
def test_other_specs_are_refused(spec, hint):
    with pytest.raises(UserError, match=hint) as caught:
        open_source(spec, train=True)
    assert spec.startswith("folder:") or repr(spec) in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("kind", ["digits", "folder"])
def test_a_source_imports_only_what_it_uses(tmp_path, kind):
    Image.new("RGB", (4, 4)).save(tmp_path / "1.png")
    spec = f"folder:{tmp_path}" if kind == "folder" else kind
    program = f"""
import sys
from occinv.data.loader import LoaderSpec, TrainLoader
from occinv.data.open_source import open_source
from occinv.data.subset import select
from occinv.schema import Data
source = select(open_source({spec!r}, train=True), Data(""), 0)
TrainLoader(source, LoaderSpec(batch_size=2, image_size=4)).batch(0)
unused = ("tensorflow_datasets", "occinv.data.tfds", "occinv.data.selections",
          "occinv.data.rand_augment")
assert not [name for name in unused if name in sys.modules]
assert ("occinv.data.embedded" in sys.modules) == ({kind!r} == "digits")
"""
    subprocess.run([sys.executable, "-c", program], check=True)
