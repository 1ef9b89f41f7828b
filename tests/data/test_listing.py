"""A folder is listed once, whatever its links and names are, and nothing is ignored silently."""

import logging
import os

import pytest
from PIL import Image

from occinv.data.folder import open_folder
from occinv.data.listing import _log_once
from occinv.data.loader import LoaderSpec, TrainLoader
from occinv.data.source import DecodeError
from occinv.data.subset import select
from occinv.schema import Data, UserError


def save(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path, format="PNG")


@pytest.fixture
def pets(tmp_path):
    """Three images of two classes."""
    for name in ("cat/1.png", "cat/2.png", "dog/1.png"):
        save(tmp_path / "pets" / name)
    return tmp_path / "pets"


def names(folder):
    return open_folder(str(folder), train=True).names


PETS = ["cat/1.png", "cat/2.png", "dog/1.png"]


@pytest.mark.parametrize("target", [".", "..", "../dog", "../cat", "../../pets"])
def test_links_to_folders_that_are_listed_are_not_followed(pets, target):
    (pets / "cat" / "again").symlink_to(target)
    (pets / "dog" / "again").symlink_to(target)
    assert names(pets) == PETS


def test_links_to_files_that_are_listed_are_not_followed(pets):
    (pets / "cat" / "0.png").symlink_to("../dog/1.png")  # before it in every order
    assert names(pets) == PETS


def test_what_is_elsewhere_is_listed_once(pets):
    store = pets.parent / "store"
    for name in ("a.png", "more/b.png"):
        save(store / name)
    (store / "more" / "loop").symlink_to(store)
    (pets / "cat" / "x.png").symlink_to(store / "a.png")  # also in the linked folder
    (pets / "dog" / "y.png").symlink_to(store / "more" / "b.png")
    (pets / "dog" / "z.png").symlink_to(pets / "cat" / "x.png")  # the same file again
    assert names(pets) == ["cat/1.png", "cat/2.png", "cat/x.png", "dog/1.png", "dog/y.png"]
    (pets / "dog" / "store").symlink_to(store)
    (pets / "dog" / "store_too").symlink_to(store)
    assert names(pets) == [*PETS, "dog/store/a.png", "dog/store/more/b.png"]


def test_a_class_may_be_a_link(pets):
    save(pets.parent / "birds" / "1.png")
    (pets / "bird").symlink_to("../birds")
    assert names(pets) == ["bird/1.png", *PETS]
    (pets / "kitten").symlink_to("cat")
    with pytest.raises(UserError, match="kitten holds no image, except what another class holds"):
        names(pets)


def test_files_may_be_links_into_a_hidden_store(pets):
    """As git-annex, DVC and the cache of Hugging Face keep them."""
    save(pets / ".store" / "abc")
    (pets / "cat" / "3.png").symlink_to("../.store/abc")
    assert names(pets) == ["cat/1.png", "cat/2.png", "cat/3.png", "dog/1.png"]
    (pets / ".store" / "abc").unlink()
    with pytest.raises(UserError, match=r"cat/3.png is a link to ../.store/abc, which is missing"):
        names(pets)


def test_ignored_files_are_counted_once(pets, caplog):
    for name in ("cat/notes.txt", "cat/x.TXT", "dog/a.svg", "dog/README", "dog/.hidden.txt"):
        (pets / name).write_text("no image")
    os.mkfifo(pets / "dog" / "pipe.jpg")  # whoever reads it waits for ever
    (pets / "dog" / "link.png").symlink_to("1.png")
    _log_once.cache_clear()
    with caplog.at_level(logging.INFO, logger="occinv.data"):
        assert names(pets) == names(pets) == PETS
    assert caplog.messages == [
        f"{pets}: ignored other files: 2 .txt, 1 no suffix, 1 .svg, 1 .jpg (first: cat/notes.txt)",
        f"{pets}: ignored links to what is listed already: 1 (first: dog/link.png)",
    ]


@pytest.mark.parametrize("suffix", ["JPE", "jfif", "bmp", "Gif", "tif", "tiff", "webp"])
def test_every_suffix_is_listed(tmp_path, suffix):
    save(tmp_path / f"1.{suffix}")
    assert names(tmp_path) == [f"1.{suffix}"]


ODD = "a\nb\tc\x1b[31m\u2028d\\n.png"


def test_odd_names_stay_on_one_line(pets, tmp_path):
    save(pets / "mouse\x1b[2J" / ODD)
    source = open_folder(str(pets), train=True)
    assert source.classes == ("cat", "dog", "mouse\\x1b[2J")
    assert source.read(3).label == 2
    lines = list(select(source, Data("", per_class=1), 0).lines())
    shown = r"mouse\x1b[2J/a\nb\tc\x1b[31m\u2028d\\n.png"
    assert lines[2] == f"3\tmouse\\x1b[2J\t{shown}"
    for entries in ("\n".join(lines), shown, shown.split("/")[1]):
        (tmp_path / "list.txt").write_text(entries)
        part = select(source, Data("", list=str(tmp_path / "list.txt")), 0)
        assert part.indices.tolist()[-1] == 3


def test_odd_names_are_escaped_in_messages(pets, caplog):
    (pets / "cat" / ODD).write_bytes(b"no image")
    (pets / "cat" / "\x1b[1m.txt").write_text("")
    _log_once.cache_clear()
    source = open_folder(str(pets), train=True)
    index = next(i for i, name in enumerate(source.names) if "\n" in name)
    spec = LoaderSpec(batch_size=4, image_size=4, max_corrupt=1)
    loader = TrainLoader(source, spec)
    for step in range(2):
        loader.batch(step)
    with pytest.raises(DecodeError) as caught:
        source.read(index)
    texts = [str(caught.value), caught.value.name, *caplog.messages]
    assert len(texts) == 4
    assert all(text.isprintable() for text in texts)
    with pytest.raises(UserError) as caught:
        open_folder(f"{pets}\x1b[1m", train=True)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["caf\udce9.png", "caf\udce9/1.png"])
def test_names_that_are_not_utf8_are_refused(pets, name):
    save(pets / "cat" / name) if name.endswith("e9.png") else save(pets / name)
    with pytest.raises(UserError, match=r"caf\\udce9.* is not UTF-8. Rename it") as caught:
        names(pets)
    assert str(caught.value).isprintable()
