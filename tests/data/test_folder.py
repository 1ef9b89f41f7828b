import io

import numpy as np
import pytest
from PIL import Image

from occinv.data.decode import decode_rgb
from occinv.data.folder import open_folder
from occinv.data.source import DecodeError
from occinv.schema import UserError

RNG = np.random.default_rng(0)


def save(path, image=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    if image is None:
        image = Image.fromarray(RNG.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    image.save(path, **options)
    return path


def test_classes_are_the_sorted_sub_folders_and_files_lie_at_any_depth(tmp_path):
    for name in ("b/2.PNG", "b/deep/er/1.jpg", "a/x.JPEG", "a/y.webp", "a/.hidden.png"):
        save(tmp_path / name, format="WEBP" if name.endswith("webp") else "PNG")
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    (tmp_path / ".git").mkdir()
    for train in (True, False):
        source = open_folder(str(tmp_path), train=train)
        assert source.name == f"folder:{tmp_path}"
        assert source.classes == ("a", "b")
        assert source.names == ["a/x.JPEG", "a/y.webp", "b/2.PNG", "b/deep/er/1.jpg"]
        assert source.labels.tolist() == [0, 0, 1, 1] and source.labels.dtype == np.int32
    sample = source.read(2)
    assert (sample.label, sample.index, sample.image.shape) == (1, 2, (12, 16, 3))


def test_a_flat_folder_has_no_labels(tmp_path):
    for name in ("2.png", "1.png"):
        save(tmp_path / name)
    source = open_folder(str(tmp_path), train=True)
    assert source.classes == () and source.names == ["1.png", "2.png"]
    assert source.labels.tolist() == [-1, -1] and source.read(0).label == -1


def test_train_and_val(tmp_path):
    for name in ("train/a/1.png", "train/b/1.png", "train/c/1.png", "val/c/1.png", "val/a/1.png"):
        save(tmp_path / name)
    train, val = (open_folder(str(tmp_path), train=t) for t in (True, False))
    assert train.name == f"folder:{tmp_path}/train" and val.name == f"folder:{tmp_path}/val"
    assert train.classes == val.classes == ("a", "b", "c")
    assert val.labels.tolist() == [0, 2]  # numbered as in train, though b is missing
    save(tmp_path / "val/bb/1.png")
    with pytest.raises(UserError, match=r"a class 'bb' .* \(did you mean 'b'\?\)"):
        open_folder(str(tmp_path), train=False)


def test_without_val_both_parts_are_the_same_by_name(tmp_path):
    save(tmp_path / "train/a/1.png")
    assert len(open_folder(str(tmp_path), train=True)) == 1
    names = {open_folder(str(tmp_path), train=train).name for train in (True, False)}
    assert len(names) == 1
    save(tmp_path / "test/a/1.png")
    assert open_folder(str(tmp_path), train=False).name.endswith("/test")


def test_folders_that_cannot_be_opened(tmp_path):
    save(tmp_path / "pictures/a/1.png")
    with pytest.raises(UserError, match=r"no folder .*picture \(did you mean 'pictures'\?\)"):
        open_folder(str(tmp_path / "picture"), train=True)
    with pytest.raises(UserError, match=r"no folder .*nowhere/x, because there is no .*nowhere$"):
        open_folder(str(tmp_path / "nowhere/x"), train=True)
    with pytest.raises(UserError, match="is a file, expected a folder"):
        open_folder(str(tmp_path / "pictures/a/1.png"), train=True)
    (tmp_path / "pictures/b").mkdir()
    with pytest.raises(UserError, match="pictures/b holds no image"):
        open_folder(str(tmp_path / "pictures"), train=True)
    with pytest.raises(UserError, match="pictures/b holds no image"):
        open_folder(str(tmp_path / "pictures/b"), train=True)
    save(tmp_path / "pictures/loose.png")
    with pytest.raises(UserError, match=r"both images .* and folders"):
        open_folder(str(tmp_path / "pictures"), train=True)


def test_an_unreadable_folder_is_named(tmp_path, monkeypatch):
    save(tmp_path / "a/1.png")

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("occinv.data.folder.os.scandir", refuse)
    with pytest.raises(UserError, match=f"cannot list {tmp_path}: Permission denied"):
        open_folder(str(tmp_path), train=True)


@pytest.mark.parametrize("part", ["train", "val", "validation", "test"])
def test_a_class_with_the_name_of_a_part_is_refused(tmp_path, part):
    for name in (part, "cat"):
        save(tmp_path / name / "1.png")
    for train in (True, False):
        with pytest.raises(UserError, match=rf"holds '{part}' and 'cat', .* class or a part\. Ren"):
            open_folder(str(tmp_path), train=train)


def test_images_beside_the_parts_are_refused(tmp_path):
    save(tmp_path / "train/cat/1.png")
    save(tmp_path / "loose.png")
    with pytest.raises(UserError, match=r"holds 'train' and 'loose.png'"):
        open_folder(str(tmp_path), train=True)


def test_folders_without_images_may_be_beside_the_parts(tmp_path):
    for name in ("train/cat/1.png", "val/cat/1.png"):
        save(tmp_path / name)
    (tmp_path / "annotations/cat").mkdir(parents=True)
    (tmp_path / "annotations/cat/1.xml").write_text("<xml/>")
    assert open_folder(str(tmp_path), train=False).name.endswith("/val")


def test_validation_alone_is_named(tmp_path):
    save(tmp_path / "val/cat/1.png")
    with pytest.raises(UserError, match=rf"no 'train'. Use folder:{tmp_path}/val"):
        open_folder(str(tmp_path), train=False)


def test_classes_are_sorted_by_their_names_and_not_by_their_paths(tmp_path):
    for name in ("a-b/1.png", "a/1.png", "a.b/1.png"):
        save(tmp_path / name)
    source = open_folder(str(tmp_path), train=True)
    assert source.names == ["a/1.png", "a-b/1.png", "a.b/1.png"]
    assert [source.classes[label] for label in source.labels] == ["a", "a-b", "a.b"]


def encoded(image, format, **options):
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def test_exif_orientation_is_applied():
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16] = 255  # white on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees clockwise to show"
    upright = decode_rgb(encoded(Image.fromarray(pixels), "JPEG", exif=exif), "image")
    assert upright.shape == (32, 16, 3)
    assert upright[:14].mean() > 250 and upright[18:].mean() < 5  # what was left is on top


def test_kinds_of_images_become_rgb():
    gray = RNG.integers(0, 256, (9, 7), dtype=np.uint8)
    color = RNG.integers(0, 256, (9, 7, 3), dtype=np.uint8)
    stacked = np.repeat(gray[..., None], 3, -1)

    def check(content, expected, tolerance=0):
        image = decode_rgb(content, "image")
        assert image.dtype == np.uint8 and image.shape[2:] == (3,)
        difference = image.astype(int) - expected
        assert np.abs(difference).max() <= tolerance

    check(encoded(Image.fromarray(gray), "PNG"), stacked)
    wide = gray.astype(np.uint16) * 257
    check(encoded(Image.fromarray(wide), "PNG"), stacked)  # 16 bits: scaled, not clipped
    check(encoded(Image.fromarray(gray).convert("P"), "PNG"), stacked)
    palette = Image.fromarray(color).quantize(16)
    check(encoded(palette, "PNG"), np.asarray(palette.convert("RGB")))
    # A palette whose entries are partly transparent, given as bytes.
    check(
        encoded(palette, "PNG", transparency=bytes(range(0, 160, 10))),
        np.asarray(palette.convert("RGB")),
    )
    alpha = np.concatenate([color, gray[..., None]], -1)
    check(encoded(Image.fromarray(alpha), "PNG"), color)
    check(encoded(Image.fromarray(np.stack([gray, gray], -1), "LA"), "PNG"), stacked)
    check(encoded(Image.fromarray(gray > 127), "PNG"), (stacked > 127) * 255)
    check(encoded(Image.fromarray(color), "WEBP", lossless=True), color)
    flat = Image.new("RGB", (16, 16), (200, 100, 50))
    check(encoded(flat.convert("CMYK"), "JPEG", quality=95), np.array([200, 100, 50]), 4)


def test_a_png_named_jpg_is_read_by_its_content(tmp_path):
    image = Image.fromarray(RNG.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    save(tmp_path / "a.jpg", image, format="PNG")
    read = open_folder(str(tmp_path), train=True).read(0).image
    np.testing.assert_array_equal(read, np.asarray(image))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_truncated_and_foreign_files_are_named(tmp_path, format):
    path = save(
        tmp_path / "image.jpg",
        Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)),
        format=format,
    )
    whole = path.read_bytes()
    source = open_folder(str(tmp_path), train=True)
    for content in (whole[: len(whole) // 2], whole[:20], b"", b"<html>404</html>"):
        path.write_bytes(content)
        with pytest.raises(DecodeError, match=r"image 0, .*image\.jpg: ") as caught:
            source.read(0)
        assert caught.value.name == str(path) and isinstance(caught.value, UserError)
    path.unlink()
    with pytest.raises(DecodeError, match=r"image\.jpg"):
        source.read(0)
