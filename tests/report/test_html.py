"""The page is one file, complete, escaped, and honest about what is missing."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser

import pytest
from example_run import large

from occinv.report.html import duration, render, write_html
from occinv.report.results import Results
from occinv.schema import UserError

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Tags with their attributes, the text, and whether every tag was closed in order."""

    def __init__(self, source: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.open = "", []
        self.feed(source)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += " " + " ".join(data.split())

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


@pytest.fixture
def quick_figures(monkeypatch):
    """Figures are built but not rendered, which takes most of a page's time."""
    monkeypatch.setattr("occinv.report.svg.as_svg", lambda figure, name: f"<svg>{name}</svg>")


def add_pictures(results, folder) -> None:
    (folder / "p").mkdir()
    for place in (1, 2):
        triples = []
        for i in range(3):
            triple = {
                kind: f"p/{place}_{i}_{kind}.png"
                for kind in ("original", "masked", "reconstructed")
            }
            for path in triple.values():
                (folder / path).write_bytes(PIXEL)
            triples.append(triple)
        results.rows[place].reconstructions = triples


def test_page_is_self_contained(results, tmp_path):
    add_pictures(results, tmp_path)
    path = write_html(results, tmp_path)
    assert path == tmp_path / "report.html"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p", "report.html"], "no scratch left"
    page = Page(path.read_text(encoding="utf-8"))
    sources = [attributes["src"] for tag, attributes in page.tags if "src" in attributes]
    assert len(sources) == 2 * 9, "two rows of three triples"
    assert all(source.startswith("data:image/") for source in sources)
    figures = [attributes for _, attributes in page.tags if attributes.get("role") == "img"]
    assert page.count("svg") == len(figures) == 5
    assert all(attributes["aria-label"] for attributes in figures)
    assert all(attributes.get("alt") for tag, attributes in page.tags if tag == "img")
    assert page.count("link") == 0
    outside = re.sub(r'"data:[^"]*"', "", path.read_text(encoding="utf-8"))
    assert not re.search(r"https?://|@import|url\((?!#)", outside)


@pytest.mark.usefixtures("quick_figures")
def test_page_is_escaped(results, tmp_path):
    nasty = "<script>alert(1)</script>"
    for name in ("title", "subject", "command", "machine", "paper_setting"):
        setattr(results, name, nasty)
    results.columns = [replace(c, heading=nasty, about=nasty) for c in results.columns]
    results.settings[nasty] = nasty
    row = results.rows[1]
    row.name = row.t1 = row.measure = nasty
    row.pretrain = replace(row.pretrain, command=nasty, config=nasty, duration=nasty)
    row.reconstructions = [dict.fromkeys(("original", "masked", "reconstructed"), '"><b>.png')]
    source = render(results, tmp_path)
    assert nasty not in source
    page = Page(source)
    assert page.count("script") == 1, "the page's own"
    assert page.count("b") == 5, "the page's own"
    assert "loss is <script>alert('nan')</script> at step 7" in page.text


@pytest.mark.usefixtures("quick_figures")
def test_page_holds_numbers_sentences_commands_and_configs(results, tmp_path):
    page = Page(render(results, tmp_path))
    for text in (
        "85.7",
        "+5.7",
        "−1.3",
        "Δ +2.6",
        "Δ −0.9",
        "top-1 after fine-tuning",
        "paper (ViT-B, ImageNet)",
        "Occlusion and random initialization",
        "0.910",
        "R-MAE†: 78.7 %, 1.3 points below Random init",
        "occinv train --config configs/mae.py --workdir runs/mae",
        "objective: mae seed: 0",
        "312,345 parameters",
        "occinv reproduce quickstart",
        "4 min 31 s",
        "2 January 2026",
    ):
        assert text in page.text, text
    assert page.count("details") == len(results.rows)
    assert page.count("tr") == 2 + len(results.rows)


@pytest.mark.usefixtures("quick_figures")
def test_missing_pieces_are_named(results, tmp_path):
    results.rows[1].reconstructions = [
        dict.fromkeys(("original", "masked", "reconstructed"), "gone.png")
    ]
    page = Page(render(results, tmp_path))
    assert "3 of 5 rows are complete." in page.text
    assert "R-MAE‡: not yet finished" in page.text
    assert "C-MAE: failed" in page.text
    assert page.text.count("missing: gone.png") == 3
    assert "Not started." in page.text


@pytest.mark.usefixtures("quick_figures")
def test_finished_run_has_no_notice(results, tmp_path):
    results.rows = results.rows[:3]
    assert "rows are complete" not in render(results, tmp_path)


@pytest.mark.usefixtures("quick_figures")
def test_the_table_has_the_columns_of_the_results():
    page = Page(render(large(), "."))
    cells = [attributes for tag, attributes in page.tags if tag == "td"]
    measured = ["FT %", "paper", "Linear %", "paper", "10 % FT %", "paper", "PSNR"]
    labels = ["T1 · T2", "Target", "M", *measured, "CKA pretrained", "CKA fine-tuned", "Time"]
    assert [cell["data-label"] for cell in cells] == 16 * labels, "each has its heading on a phone"
    assert "Which invariance" not in page.text and "Linear probe" in page.text
    results = replace(large(), notes=["A note on it."])
    for row in results.rows:
        row.cka, row.paper = {}, {}
        row.pretrain = row.finetune = row.linear = None
    page = Page(render(results, "."))
    labels = {attributes["data-label"] for tag, attributes in page.tags if tag == "td"}
    assert labels == {"T1 · T2", "Target", "M", "FT %", "Linear %", "10 % FT %", "PSNR", "Time"}
    assert "A note on it." in page.text
    assert "CKA" not in page.text and "Training" not in page.text and "Δ" not in page.text


@pytest.mark.usefixtures("quick_figures")
def test_on_a_phone_nothing_is_wider_than_the_page():
    page = render(large(), ".")
    cards = page[page.index("@media (max-width: 640px)") :]
    assert ".wide thead { display: none; }" in cards, "rows become cards"
    assert "content: attr(data-label)" in cards, "which keep their headings"
    assert "min-width: calc(.9 * var(--drawn))" in page, "text in figures keeps its size"
    boxes = dict(re.findall(r"^\.?(plot|pre|wide) {[^}]*overflow(?:-x)?: (\w+)", page, re.M))
    assert boxes == dict.fromkeys(("plot", "pre", "wide"), "auto"), "these scroll by themselves"


@pytest.mark.usefixtures("quick_figures")
def test_pictures_may_be_in_any_folder(results, tmp_path):
    add_pictures(results, tmp_path)
    for row in results.rows:
        row.reconstructions = [
            {kind: str(tmp_path / path) for kind, path in triple.items()}
            for triple in row.reconstructions
        ]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    path = write_html(results, elsewhere, "comparison.html")
    assert path == elsewhere / "comparison.html"
    assert "missing:" not in path.read_text(encoding="utf-8")


@pytest.mark.usefixtures("quick_figures")
def test_nothing_has_run_yet(tmp_path):
    empty = Results(title="x", command="c", machine="m", rows=[], columns=[])
    page = Page(render(empty, tmp_path))
    assert "What this run shows No row has a number yet." in " ".join(page.text.split())
    assert page.count("img") == 0


@pytest.mark.usefixtures("quick_figures")
def test_numbers_without_findings_have_no_section_of_findings(results):
    results.rows = results.rows[1:2]
    for row in results.rows:
        row.values = {"finetune": row.values["finetune"]}
    page = Page(render(results, "."))
    assert "85.7" in page.text
    assert "No row has a number" not in page.text and "What this run shows" not in page.text


@pytest.mark.usefixtures("quick_figures")
def test_training_and_validation_have_their_names(results, tmp_path):
    add_pictures(results, tmp_path)
    page = Page(render(results, tmp_path))
    assert "Fine-tuning: training loss, the cross-entropy on the training batches" in page.text
    assert "validation accuracy, the top-1 on the validation images" in page.text
    assert "Training loss of the pretraining" in page.text
    assert "validation images 760" in " ".join(page.text.split()), "the setting num_test"
    labels = " ".join(str(attributes.get("aria-label")) for _, attributes in page.tags)
    assert "training loss and validation accuracy by step" in labels
    assert not re.search(r"test (set|accuracy|images?)\b", page.text + labels, re.I)


@pytest.mark.usefixtures("quick_figures")
def test_a_time_in_training_steps_is_named(results):
    assert "in training steps" not in render(results, ".")
    row = results.rows[1]
    for stage, seconds in ((row.pretrain, 61.0), (row.finetune, 4.0)):
        stage.seconds, stage.step_seconds = None, seconds
    page = Page(render(results, "."))
    assert "1 min 05 s in training steps paper: 100 epochs" in page.text, "in the table"
    assert "MAE · done · 1 min 05 s in training steps" in page.text
    assert "Pretraining · 20 epochs · 1 min 01 s in training steps ·" in page.text
    assert "It leaves out compilation, evaluation, and steps that a restart repeated." in page.text
    row.finetune.step_seconds = None
    assert row.step_seconds is None, "a part is not the time of the row"


@pytest.mark.usefixtures("quick_figures")
def test_the_dashed_line_has_the_name_of_the_baseline(results):
    results.rows[0].name = "supervised"
    assert "The dashed line is supervised after fine-tuning." in Page(render(results, ".")).text
    results.rows[0].cka = {}
    assert "The dashed line is supervised after fine-tuning." not in Page(render(results, ".")).text


@pytest.mark.usefixtures("quick_figures")
def test_results_are_read_from_the_folder(results, tmp_path):
    with pytest.raises(UserError, match=r"results\.json"):
        write_html(None, tmp_path)
    (tmp_path / "results.json").write_text(json.dumps(asdict(results)))
    assert "85.7" in write_html(None, tmp_path).read_text(encoding="utf-8")


@pytest.mark.usefixtures("quick_figures")
def test_a_write_cut_short_keeps_the_old_page(results, tmp_path, monkeypatch):
    path = write_html(results, tmp_path)
    before = path.read_bytes()

    def disk_full(descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr("occinv.train.disk.os.fsync", disk_full)
    with pytest.raises(OSError, match="no space"):
        write_html(results, tmp_path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (8.44, "8.4 s"),
        (59.97, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3599.7, "1 h 00 min"),
        (11220, "3 h 07 min"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    "outside", ["/etc/hostname", "../secret.png", "p/link.png", "gs://b/own.png"]
)
def test_a_picture_outside_the_folder_is_refused(results, tmp_path, outside):
    folder = tmp_path / "table"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(PIXEL)
    add_pictures(results, folder)
    (folder / "p" / "link.png").symlink_to(tmp_path / "secret.png")
    results.rows[1].reconstructions[0]["original"] = outside
    (folder / "results.json").write_text(json.dumps(asdict(results)))
    with pytest.raises(UserError, match="not in"):
        write_html(None, folder)


def test_only_pictures_are_embedded(results, tmp_path, quick_figures):
    add_pictures(results, tmp_path)
    path = tmp_path / results.rows[1].reconstructions[0]["original"]
    path.write_bytes(b"a secret")
    page = render(results, tmp_path)
    assert base64.b64encode(b"a secret").decode() not in page
    assert base64.b64encode(PIXEL).decode() in page
