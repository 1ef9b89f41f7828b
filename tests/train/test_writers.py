"""What writers write can be read back, also after a kill and a resume."""

from __future__ import annotations

import json
import struct
import time

import jax.numpy as jnp
import numpy as np
import pytest

from occinv.train.writers import (
    JsonlWriter,
    MultiWriter,
    TensorBoardWriter,
    event_records,
    read_scalars,
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def write_steps(path, steps, **options):
    writer = JsonlWriter(path, **options)
    for step in steps:
        writer.write_scalars(step, {"loss": step / 2})
    writer.close()


def test_scalars_of_every_kind_come_back(path):
    writer = JsonlWriter(path)
    scalars = {
        "python": 0.1,
        "count": 7,
        "float32": np.float32(0.1),
        "device": jnp.float32(2.5),
        "bfloat16": jnp.bfloat16(1.5),
        "one": jnp.ones((1,)),
    }
    start = time.time()
    writer.write_scalars(jnp.int32(3), scalars)
    # Whole lines are in the file before it is flushed or closed: a reader may look at any time.
    (line,) = read_scalars(path)
    assert line.pop("step") == 3
    assert start - 1 <= line.pop("time") <= time.time() + 1
    expected = {"python": 0.1, "count": 7, "float32": float(np.float32(0.1)), "device": 2.5}
    assert line == expected | {"bfloat16": 1.5, "one": 1.0}
    assert isinstance(line["count"], int)
    writer.write_images(3, {"x": np.zeros((1, 2, 2, 3))})
    writer.write_texts(3, {"note": "text"})
    writer.close()
    writer.close()
    assert len(read_scalars(path)) == 1


def test_not_finite_is_still_json(path):
    writer = JsonlWriter(path)
    writer.write_scalars(1, {"a": np.nan, "b": jnp.inf, "c": -np.inf})
    writer.close()

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    text = path.read_text()
    line = json.loads(text, parse_constant=refuse)
    assert (line["a"], line["b"], line["c"]) == ("NaN", "Infinity", "-Infinity")
    (line,) = read_scalars(path)
    assert np.isnan(line["a"])
    assert (line["b"], line["c"]) == (np.inf, -np.inf)


def test_after_a_resume_no_step_stands_twice(path, tmp_path):
    write_steps(path, [10, 20, 30, 40])
    with path.open("a") as file:
        file.write('{"step": 50, "ti')
    assert [x["step"] for x in read_scalars(path)] == [10, 20, 30, 40]
    write_steps(path, [30, 40, 50], resume_step=20)
    assert [x["step"] for x in read_scalars(path)] == [10, 20, 30, 40, 50]
    write_steps(path, [10], resume_step=0)
    assert [x["step"] for x in read_scalars(path)] == [10]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_going_on_without_a_step_adds_after_the_last_whole_line(path):
    write_steps(path, [1, 2])
    path.write_text(path.read_text() + '{"step": 3, "loss": 1}')  # no newline: not written whole
    write_steps(path, [3])
    assert [x["step"] for x in read_scalars(path)] == [1, 2, 3]
    assert read_scalars(path)[-1]["loss"] == 1.5


def test_not_finite_survives_a_resume(path):
    writer = JsonlWriter(path)
    writer.write_scalars(1, {"loss": np.nan})
    writer.close()
    write_steps(path, [2], resume_step=1)
    assert np.isnan(read_scalars(path)[0]["loss"])


@pytest.mark.parametrize(
    "broken",
    [
        b"nonsense",
        b"",
        b"\0" * 9,
        b"7",
        b"{}",
        b'{"step": []}',
        b"\xff",
        b'{"step": 1, "loss": "high"}',
        b'{"step": 1, "loss": [1]}',
        b'{"step": Infinity}',
        b'{"step": 1, "loss": 1' + b"0" * 400 + b"}",
    ],
)
def test_a_broken_line_is_dropped_aloud(path, broken, caplog):
    path.write_bytes(b'{"step": 1}\n' + broken + b'\n{"step": 2}\n{"step": 3')
    assert [line["step"] for line in read_scalars(path)] == [1, 2]
    assert f"{path}: dropped line 2, which is broken" in caplog.text
    assert f"{path}: dropped line 4, which is broken" in caplog.text
    caplog.clear()
    write_steps(path, [3], resume_step=2)
    assert "dropped line 2" in caplog.text
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
    assert [p.name for p in path.parent.iterdir()] == ["metrics.jsonl"]


def test_what_is_no_scalar_is_an_error(path):
    writer = JsonlWriter(path)
    with pytest.raises(ValueError, match=r"'loss' is float64\[2\]"):
        writer.write_scalars(1, {"loss": np.ones(2)})
    with pytest.raises(ValueError, match="one number"):
        writer.write_scalars(1, {"loss": "high"})
    with pytest.raises(ValueError, match="called 'step'"):
        writer.write_scalars(1, {"step": 2})
    writer.close()
    assert read_scalars(path) == []
    with pytest.raises(FileNotFoundError):
        read_scalars(path.with_name("nowhere.jsonl"))


class Recorder:
    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *arguments: self.calls.append((name, *arguments))


def test_every_writer_gets_every_call():
    first, second = Recorder(), Recorder()
    both = MultiWriter([first, second])
    both.write_scalars(1, {"loss": 0.5})
    both.write_images(1, {"x": np.zeros((1, 2, 2, 3))})
    both.write_texts(1, {"note": "text"})
    both.flush()
    both.close()
    names = ["write_scalars", "write_images", "write_texts", "flush", "close"]
    assert [call[0] for call in first.calls] == names
    assert str(first.calls) == str(second.calls)
    assert first.calls[0] == ("write_scalars", 1, {"loss": 0.5})


def events(folder):
    """Tag -> [(step, value message)] of the event files, oldest first."""
    from tensorboardX.proto.event_pb2 import Event

    found: dict = {}
    for path in sorted(folder.iterdir()):
        for _, payload in event_records(path.read_bytes()):
            event = Event.FromString(payload)
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value))
    return found


def steps_of(folder):
    return [step for step, _ in events(folder).get("loss", [])]


def test_tensorboard_keeps_what_was_flushed_and_no_step_twice(tmp_path):
    killed = TensorBoardWriter(tmp_path, resume_step=-1)
    for step in range(1, 31):
        killed.write_scalars(step, {"loss": 1.0})
    killed.flush()
    assert steps_of(tmp_path) == list(range(1, 31))
    (path,) = tmp_path.iterdir()
    broken = struct.pack("<QI", 4, 0) + b"\xff" * 8
    path.write_bytes(path.read_bytes()[:-3] + broken)  # cut within the last event
    for resumed in (20, 0):  # within a second, so the names of the files must differ
        writer = TensorBoardWriter(tmp_path, resume_step=resumed)
        writer.write_scalars(resumed + 1, {"loss": 1.0})
        writer.close()
        assert steps_of(tmp_path) == list(range(1, resumed + 2))
    killed.close()


def test_tensorboard_gets_scalars_images_and_texts(tmp_path):
    from io import BytesIO

    from PIL import Image

    writer = TensorBoardWriter(tmp_path, resume_step=6)
    writer.write_scalars(7, {"loss": jnp.float32(0.25), "worst": np.nan})
    ramp = np.linspace(-0.5, 1.5, 4 * 4 * 3, dtype=np.float32).reshape(1, 4, 4, 3)
    dark = np.full((1, 4, 4, 3), 2, np.uint8)
    writer.write_images(7, {"ramp": ramp, "dark": dark, "gray": jnp.ones((1, 4, 4, 1))})
    writer.write_texts(0, {"config": '```json\n{"lr": 0.1}\n```', "note": "hello"})
    with pytest.raises(ValueError, match=r"'flat' have shape \(4, 4, 3\)"):
        writer.write_images(7, {"flat": ramp[0]})
    writer.close()
    found = events(tmp_path)
    ((step, value),) = found["loss"]
    assert (step, value.simple_value) == (7, 0.25)
    assert np.isnan(found["worst"][0][1].simple_value)

    def pixels(tag):
        encoded = found[tag][0][1].image.encoded_image_string
        return np.asarray(Image.open(BytesIO(encoded)).convert("RGB"))

    assert np.array_equal(pixels("ramp"), np.rint(ramp[0].clip(0, 1) * 255))
    assert np.array_equal(pixels("dark"), dark[0])
    assert (pixels("gray") == 255).all()
    texts = {
        tag: v[0][1].tensor.string_val[0].decode() for tag, v in found.items() if "text" in tag
    }
    assert any("hello" in text for text in texts.values())
    assert any('"lr": 0.1' in text for text in texts.values())
