"""Figure 1 from checkpoints of other libraries."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from occinv.cli import main
from occinv.reproduce.published import parse_published
from occinv.schema import UserError

SOURCE = "--config.data.source=digits"


def test_figure_1_of_a_checkpoint_of_transformers(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = repository / "tests" / "reference" / "libraries" / "hf_vit_mae"
    command = ["reproduce", "figure1", "--workdir", str(tmp_path), SOURCE, "--images", "40"]
    command += ["--published", f"mae={file}"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "40 images" in shown
    page = (tmp_path / "report.html").read_text()
    assert "Filled: below the CKA of" in page
    assert "40 images of " in page
    assert "--published mae=" in page
    path = tmp_path / "mae" / "evaluate" / "invariance.json"
    (record,) = json.loads(path.read_text())
    assert record["images"]["split"] == "other"
    assert "blind" in record["details"]["floor"]
    before = path.stat().st_mtime_ns
    assert main(command) == 0, "nothing is imported or measured again"
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["table1", SOURCE], "--published with table1, expected figure1"),
        (["figure1"], "needs images; add --config.data.source=SOURCE"),
        (["figure1", SOURCE, "--config.seed=1"], "it takes no --config.seed=1; leave it out"),
    ],
)
def test_what_published_needs(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["reproduce", *arguments, "--workdir", str(tmp_path / "w"), "--published", "a=b"]
    assert main(command) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


def test_published_names_and_files(tmp_path: Path) -> None:
    (tmp_path / "a.pth").touch()
    file = tmp_path / "a.pth"
    assert parse_published(f"mae={file},dino={file}") == {"mae": file, "dino": file}
    for text, said in (
        ("mae", "expected NAME=FILE"),
        (f"a/b={file}", "expected NAME=FILE"),
        (f"mae={file},mae={file}", "twice"),
        ("mae=gone.pth", "there is no such file"),
    ):
        with pytest.raises(UserError, match=said):
            parse_published(text)
