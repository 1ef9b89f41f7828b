"""`data.source=module:Class`: the example of docs/data.md, and classes that do not fit."""

import dataclasses
import re
import sys

import numpy as np
import pytest
from PIL import Image

from occinv.data.crop import Crop
from occinv.data.loader import EvalLoader, LoaderSpec, TrainLoader
from occinv.data.open_source import open_source
from occinv.data.subset import select
from occinv.schema import Data, UserError


@pytest.fixture
def example(repository, tmp_path, monkeypatch):
    """The example of docs/data.md as the module `arrays`."""
    (code,) = re.findall(
        r"```python\n(# arrays\.py.*?)```", (repository / "docs/data.md").read_text(), re.S
    )
    (tmp_path / "arrays.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("arrays", None)


def test_the_example_of_the_documentation(example):
    draw = np.random.default_rng(0)
    for part, count in (("train", 6), ("val", 3)):
        image = draw.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        label = np.arange(count) % 2
        np.savez(example / f"pets-{part}.npz", image=image, label=label)
    spec = f"arrays:Arrays:{example}/pets"
    train, val = (open_source(spec, train=part) for part in (True, False))
    assert (len(train), len(val)) == (6, 3) and train.name != val.name
    assert train.classes == ("cat", "dog") and train.labels.tolist() == [0, 1] * 3
    batch = TrainLoader(train, LoaderSpec(batch_size=6, image_size=8)).batch(0)
    assert sorted(batch.index) == list(range(6)) and (batch.label == batch.index % 2).all()
    half = select(open_source(spec, train=True, classes="dog"), Data("", fraction=0.34), 0)
    assert len(half) == 1 and half.fingerprint() != train.fingerprint() != val.fingerprint()
    with pytest.raises(UserError, match=r"cannot be opened: .*No such file.*nowhere-train.npz"):
        open_source("arrays:Arrays:nowhere", train=True)


CLASSES = """
import numpy as np
from occinv.data.source import Sample, Source

class Good(Source):
    def __init__(self, *, train):
        self.name, self.classes, self.labels = "good", ("a\\tb",), np.zeros(2, np.int32)
    def __len__(self): return 2
    def read(self, index, reduction=None):
        return Sample(np.zeros((4, 4, 3), np.uint8), 0, index)

class Channels(Good):
    def __init__(self, channels, *, train):
        super().__init__(train=train)
        self.channels = int(channels)
    def read(self, index, reduction=None):
        image = np.arange(4 * 6 * self.channels, dtype=np.uint8).reshape(4, 6, -1)
        return Sample(image, 0, index)

class Named(Good):
    names = ["1\\n.png", "2.png"]

class Wide(Good):
    def __init__(self, *, train):
        super().__init__(train=train)
        self.labels = self.labels.astype(np.int64)

class High(Good):
    def __init__(self, *, train):
        super().__init__(train=train)
        self.labels += 1

class Short(Named):
    names = ["1"]

class Empty(Good):
    def __len__(self): return 0

class Nameless(Good):
    def __init__(self, *, train): pass

class Other: pass

class Abstract(Source):
    def __init__(self, *, train): pass
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The module `own_classes`."""
    (tmp_path / "own_classes.py").write_text(CLASSES)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_classes", None)


def test_the_least_that_a_source_needs(module):
    source = open_source("own_classes:Good", train=True)
    assert source.classes == (r"a\tb",) and list(source.names) == [] == list(source.files())
    source.prefetch([0])
    named = open_source("own_classes:Named", train=True)
    assert list(named.files()) == ["1\\n.png\t\ta\\tb", "2.png\t\ta\\tb"]
    assert source.fingerprint() != named.fingerprint()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Wide", r"labels are int64 \[2\], expected int32 \[2\]"),
        ("High", r"labels are 1 to 1, expected 0 to 0 for its 1 classes, or -1"),
        ("Short", r"it has 1 names, expected 2 or none"),
        ("Empty", r"it has no image"),
        ("Nameless", r"it has no attribute 'name'"),
        ("Other", r"is not a subclass of Source"),
        ("Missing", r"cannot be imported: .*no attribute 'Missing'"),
        ("Abstract", r"Abstract does not define __len__, read"),
        ("Good:5", r"Good\('5', train=True\) is wrong: too many positional arguments"),
    ],
)
def test_classes_that_do_not_fit(module, name, message):
    with pytest.raises(UserError, match=message) as caught:
        open_source(f"own_classes:{name}", train=True)
    assert f"data.source='own_classes:{name.split(':')[0]}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "spec", ["nowhere:Class", "foldr:Class", ":Class", "a b:Class", "..x:Class"]
)
def test_modules_that_there_are_not(spec):
    with pytest.raises(UserError, match=re.escape(f"data.source={spec!r}")):
        open_source(spec, train=True)


def test_images_of_other_channels(module):
    """The arrays are taken as they are, and RGB becomes gray; nothing else is converted."""

    def whole(given, channels):
        source = open_source(f"own_classes:Channels:{given}", train=True)
        spec = LoaderSpec(batch_size=2, image_size=(4, 6), channels=channels, resize_ratio=1.0)
        image = EvalLoader(source, spec).batch(0).image[0]
        np.testing.assert_equal(image.shape, (4, 6, channels))
        train = TrainLoader(source, dataclasses.replace(spec, crops=(Crop(2),))).batch(0)
        assert train.image.shape == (2, 4, 6, channels) and train.crops[0].shape[1:3] == (2, 2)
        return source.read(0).image, image

    for channels in (1, 5):
        np.testing.assert_array_equal(*whole(channels, channels))
    color, gray = whole(3, 1)
    np.testing.assert_array_equal(gray[..., 0], np.asarray(Image.fromarray(color).convert("L")))
    for given, channels in ((1, 3), (3, 2), (4, 3)):
        said = rf"data.channels={channels}, but an image has the shape \[4, 6, {given}\], expected"
        with pytest.raises(UserError, match=said):
            whole(given, channels)
