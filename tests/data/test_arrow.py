"""`arrow:PATH`: files as save_to_disk of Hugging Face `datasets` 5.2 writes them."""

import io
import json
import pickle

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from occinv.data.open_source import open_source
from occinv.data.source import DecodeError
from occinv.schema import UserError

DRAW = np.random.default_rng(0)
FEATURES = {
    "label": {"names": ["cat", "dog"], "_type": "ClassLabel"},
    "text": {"dtype": "string", "_type": "Value"},
    "tags": [{"dtype": "string", "_type": "Value"}],
    "img": {"_type": "Image"},
}


def encoded(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def save(folder, images, labels, counts, features=FEATURES):
    """Write one file for each of `counts`, in record batches of two rows."""
    folder.mkdir(parents=True)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": image, "path": "x.png"} for image in images]
    table = pa.table({"label": pa.array(labels, pa.int64()), "img": pa.array(rows, kind)})
    files = []
    for number, count in enumerate(counts):
        part = table.slice(sum(counts[:number]), count)
        files.append({"filename": f"data-{number:05}-of-{len(counts):05}.arrow"})
        with (
            pa.OSFile(str(folder / files[-1]["filename"]), "wb") as sink,
            pa.ipc.new_stream(sink, table.schema) as writer,
        ):
            writer.write_table(part, max_chunksize=2)
    (folder / "state.json").write_text(json.dumps({"_data_files": files}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))


@pytest.fixture
def pets(tmp_path):
    """A DatasetDict: seven images in two files, and three for validation; and their pixels."""
    pixels = DRAW.integers(0, 256, (7, 5, 6, 3), dtype=np.uint8)
    images = list(map(encoded, pixels))
    save(tmp_path / "train", images, [0, 1, 0, None, -1, 1, 0], (3, 4))
    save(tmp_path / "validation", images[:3], [1, 1, 0], (3,))
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation"]}))
    return tmp_path, pixels


def test_every_row_is_read(pets):
    folder, pixels = pets
    train = open_source(f"arrow:{folder}", train=True)
    assert train.classes == ("cat", "dog") and train.labels.tolist() == [0, 1, 0, -1, -1, 1, 0]
    assert train.labels.dtype == np.int32 and len(train) == 7
    for index in (6, 0, 3, 2, 5, 1, 4):
        sample = train.read(index)
        np.testing.assert_array_equal(sample.image, pixels[index])
        assert (sample.index, sample.label) == (index, train.labels[index])
    size = (folder / "train" / "data-00000-of-00002.arrow").stat().st_size
    assert next(train.files()) == f"data-00000-of-00002.arrow\t{size}\t"


def test_a_pickled_source_maps_the_files(pets):
    """A worker process opens the data set by its path; no image is sent to it."""
    source = open_source(f"arrow:{pets[0]}", train=True)
    content = pickle.dumps(source)
    assert len(content) < 500
    np.testing.assert_array_equal(pickle.loads(content).read(4).image, pets[1][4])


def test_parts(pets):
    folder, _ = pets
    train, val = (open_source(f"arrow:{folder}", train=part) for part in (True, False))
    assert (train.name, val.name) == (f"arrow:{folder}/train", f"arrow:{folder}/validation")
    alone = [open_source(f"arrow:{folder}/train", train=part) for part in (True, False)]
    assert alone[0].name == alone[1].name
    (folder / "dataset_dict.json").write_text('{"splits": ["validation"]}')
    with pytest.raises(UserError, match=rf"no split 'train'. Use arrow:{folder}/validation\."):
        open_source(f"arrow:{folder}", train=True)


def test_rows_that_cannot_be_read(tmp_path):
    good = encoded(np.zeros((4, 4, 3), np.uint8))
    save(tmp_path / "set", [good, b"no image", None], [0, 0, 0], (3,))
    source = open_source(f"arrow:{tmp_path}/set", train=True)
    for index, reason in ((1, "no image"), (2, "only its path")):
        with pytest.raises(DecodeError, match=rf"row {index} of arrow:{tmp_path}/set: .*{reason}"):
            source.read(index)


def test_data_sets_that_cannot_be_opened(pets):
    folder, _ = pets
    with pytest.raises(UserError, match=r"nowhere is not a data set of save_to_disk: .*No such"):
        open_source(f"arrow:{folder}/nowhere", train=True)
    file = folder / "train" / "data-00001-of-00002.arrow"
    file.write_bytes(b"cut")
    with pytest.raises(UserError, match="train is not a data set of save_to_disk") as caught:
        open_source(f"arrow:{folder}", train=True)
    assert "\n" not in str(caught.value)
    save(folder / "text", [], [], (0,), {"text": FEATURES["text"]})
    with pytest.raises(UserError, match=r"text has no image, expected a column of datasets.Image"):
        open_source(f"arrow:{folder}/text", train=True)
    for features in (5, {"img": FEATURES["img"], "label": {"names": 3, "_type": "ClassLabel"}}):
        odd = folder / f"odd {len(str(features))}"
        save(odd, [b""], [0], (1,), features)
        with pytest.raises(UserError, match=r"odd .* is not a data set of save_to_disk"):
            open_source(f"arrow:{odd}", train=True)
    save(folder / "labels", [b"", b""], [0, 2], (2,))
    with pytest.raises(UserError, match=r"has labels from 0 to 2, expected 0 to 1 for its 2"):
        open_source(f"arrow:{folder}/labels", train=True)
    (folder / "dataset_dict.json").write_text("[" * 10**5)
    with pytest.raises(UserError, match=r"dataset_dict.json is damaged"):
        open_source(f"arrow:{folder}", train=True)
    (folder / "dataset_dict.json").write_text("[]")
    with pytest.raises(UserError, match=r"dataset_dict.json is damaged"):
        open_source(f"arrow:{folder}", train=True)
