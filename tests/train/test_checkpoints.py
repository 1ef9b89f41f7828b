"""Checkpoints survive kills, flipped bits and other device counts, and come back bit for bit."""

from __future__ import annotations

import logging
import os
import random
import shutil
from pathlib import Path

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from occinv.schema import UserError
from occinv.train.checkpoints import MANIFEST, Checkpoints
from occinv.train.manifest import LATE, RunIdentity, seal


@flax.struct.dataclass
class Center:
    mean: jax.Array
    counts: tuple


def make_state(step: int) -> dict:
    """Every dtype and container that a run has, with content that follows from the step."""
    rng = np.random.default_rng(step)
    weight = rng.normal(size=(6, 8)).astype(np.float32)
    weight[0, :5] = [np.nan, -0.0, np.inf, -np.inf, 1e-45]
    params = {
        "encoder": {"block_0": {"kernel": jnp.asarray(weight)}, "scale": jnp.float32(step)},
        "head": {"bias": jnp.asarray(rng.normal(size=8), jnp.bfloat16)},
    }
    return {
        "params": params,
        "optimizer": optax.chain(optax.clip(1.0), optax.adamw(1e-3)).init(params),
        "state": Center(jnp.arange(3) + step, (jnp.array(True), [jnp.uint32(2**32 - 1)])),
        "empty": {},
        "step": jnp.int32(step),
    }


def assert_same(actual, expected) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert (a.dtype, a.shape) == (e.dtype, e.shape)
        assert np.asarray(a).tobytes() == np.asarray(e).tobytes()


def write(folder: Path, steps, keep: int = 3) -> None:
    with Checkpoints(folder, keep=keep) as checkpoints:
        for step in steps:
            assert checkpoints.save(step, make_state(step))


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("written") / "checkpoints"
    write(folder, [100, 200, 300])
    return folder


@pytest.fixture
def folder(written, tmp_path) -> Path:
    """Steps 100, 200 and 300, to be damaged."""
    return Path(shutil.copytree(written, tmp_path / "checkpoints"))


def template() -> dict:
    return jax.eval_shape(lambda: make_state(0))


def damage(path: Path, at: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def payload(folder: Path, step: int, item: str) -> Path:
    """The largest file of an item: where its arrays are."""
    files = [p for p in (folder / str(step) / item).rglob("*") if p.is_file()]
    return max(files, key=lambda p: p.stat().st_size)


def test_every_bit_and_every_container_comes_back(folder):
    with Checkpoints(folder) as checkpoints:
        for wanted in (make_state(0), template()):
            step, state = checkpoints.restore(wanted)
            assert step == 300
            assert_same(state, make_state(300))
            assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(state))
        step, state = checkpoints.restore(template(), step=100)
        assert step == 100
        assert_same(state, make_state(100))


def test_params_alone_need_neither_template_nor_optimizer(folder):
    shutil.rmtree(folder / "300" / "optimizer")
    (folder / "300" / MANIFEST).unlink()
    assert seal(folder / "300", 300, RunIdentity("run", "config"))
    with Checkpoints(folder, read_only=True) as checkpoints:
        step, params = checkpoints.restore_params()
        assert step == 300
        assert_same(params, make_state(300)["params"])
        assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(params))


def test_the_list_of_steps(folder):
    with Checkpoints(folder, read_only=True) as checkpoints:
        assert checkpoints.steps() == [100, 200, 300]
        assert checkpoints.latest() == 300


def test_only_the_newest_stay(tmp_path):
    write(tmp_path, range(1, 6), keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["4", "5"]


def test_a_step_that_is_there_is_left_alone(folder):
    before = (folder / "300" / MANIFEST).read_bytes()
    with Checkpoints(folder) as checkpoints:
        assert not checkpoints.save(300, make_state(1))
        # Going on from an older step on purpose must not be ignored, as Orbax would by default.
        assert checkpoints.save(250, make_state(250))
    assert (folder / "300" / MANIFEST).read_bytes() == before


def test_what_is_saved_is_the_state_at_the_call(tmp_path):
    size = 1 << 21
    array, host = jnp.arange(size, dtype=jnp.float32), np.arange(size)
    overwrite = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"params": {"a": array, "b": host}})
        array, host[:] = overwrite(array), -1
        _, params = checkpoints.restore_params()
    assert_same(params, {"a": np.arange(size, dtype=np.float32), "b": np.arange(size)})


def test_any_flipped_byte_is_noticed_and_the_step_before_is_used(folder, caplog):
    rng = random.Random(0)
    files = sorted(p for p in (folder / "300").rglob("*") if p.stat().st_size and p.is_file())
    picks = files + rng.choices(files, k=max(0, 60 - len(files)))
    picks += [folder / "300" / MANIFEST] * 10
    with Checkpoints(folder, read_only=True) as checkpoints:
        for path in picks:
            intact = path.read_bytes()
            broken = bytearray(intact)
            broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
            path.write_bytes(broken)
            caplog.clear()
            step, state = checkpoints.restore(template())
            assert step == 200, path
            assert_same(state, make_state(200))
            name = path.relative_to(folder / "300").as_posix()
            # A byte changed in the manifest may read as a change of the file that it speaks of.
            told = "" if name == MANIFEST else name + ": "
            assert f"checkpoint 300 is damaged ({told}" in caplog.text
            assert "); using 200" in caplog.text
            path.write_bytes(intact)
        assert checkpoints.restore(template())[0] == 300


@pytest.mark.parametrize("change", ["missing", "shorter", "added"])
def test_files_missing_cut_or_added_are_noticed(folder, caplog, change):
    path = payload(folder, 300, "params")
    if change == "missing":
        path.unlink()
    elif change == "shorter":
        path.write_bytes(path.read_bytes()[:-3])
    else:
        (path.parent / "more").write_bytes(b"x")
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.restore_params()[0] == 200
    assert "checkpoint 300 is damaged (params/" in caplog.text


def test_a_damaged_step_is_put_aside_and_can_be_saved_again(folder):
    for step in (200, 300):
        damage(payload(folder, step, "params"))
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.restore(template())[0] == 100
        assert checkpoints.steps() == [100]
        assert checkpoints.save(200, make_state(200))
        assert checkpoints.save(300, make_state(300))
        step, state = checkpoints.restore(template())
    assert step == 300
    assert_same(state, make_state(300))
    names = sorted(p.name for p in folder.iterdir())
    assert names == ["100", "200", "200.damaged", "300", "300.damaged"]


def test_nothing_good_is_an_error_and_never_a_new_start(folder):
    for step in (100, 200, 300):
        damage(payload(folder, step, "optimizer"))
    with Checkpoints(folder) as checkpoints:
        with pytest.raises(
            UserError, match=r"no undamaged checkpoint .*\[300, 200, 100\].*checksum"
        ):
            checkpoints.restore(template())
        assert checkpoints.steps() == [100, 200, 300]


def test_a_step_asked_for_has_nothing_to_fall_back_to(folder):
    damage(payload(folder, 200, "params"))
    with Checkpoints(folder) as checkpoints:
        with pytest.raises(UserError, match=r"\[200\]\. Step 200: .*checksum"):
            checkpoints.restore(template(), step=200)
        with pytest.raises(UserError, match=r"no checkpoint 250 .*from \[100, 200, 300\]"):
            checkpoints.restore(template(), step=250)


def test_a_step_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Otherwise a power loss could leave the newest steps without their content."""
    flushed: dict[bool, set[str]] = {False: set(), True: set()}  # by whether it had its name
    fsync = os.fsync

    def record(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        step = next((p for p in (path, *path.parents) if p.parent.name == "checkpoints"), None)
        if step is not None:
            flushed[step.name == "100"].add(path.relative_to(step).as_posix())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    folder = tmp_path / "checkpoints"
    write(folder, [100])
    paths = {path.relative_to(folder / "100").as_posix() for path in (folder / "100").rglob("*")}
    assert len(paths) > 10
    assert paths - set(LATE) <= flushed[False] | {"manifest.json.tmp"}
    assert {"."} <= flushed[False]
    assert set(LATE) & paths <= flushed[True]


def test_without_a_manifest_a_step_is_not_loaded(folder, caplog):
    (folder / "300" / MANIFEST).unlink()
    with Checkpoints(folder, read_only=True) as checkpoints:
        assert checkpoints.restore(template())[0] == 200
        assert f"checkpoint 300 is damaged ({MANIFEST}: missing" in caplog.text
        with pytest.raises(UserError, match=f"occinv weights accept {folder.parent}` trusts it"):
            checkpoints.restore(template(), step=300)
    assert seal(folder / "300", 300, RunIdentity("run", "config"))
    with Checkpoints(folder, read_only=True, run=RunIdentity("run", "config")) as checkpoints:
        assert checkpoints.restore(template())[0] == 300


@pytest.mark.parametrize("change", ["copied", "renamed", "exchanged"])
def test_a_folder_with_the_name_of_another_step_is_not_loaded(folder, caplog, change):
    if change == "copied":
        shutil.copytree(folder / "200", folder / "400")
    elif change == "renamed":
        (folder / "200").rename(folder / "400")
    else:
        (folder / "300").rename(folder / "x")
        (folder / "200").rename(folder / "300")
        (folder / "x").rename(folder / "200")
    with Checkpoints(folder) as checkpoints:
        step, state = checkpoints.restore(template())
    assert step == (100 if change == "exchanged" else 300)
    assert_same(state, make_state(step))
    assert "the folder holds step 200, renamed or copied" in caplog.text


def test_a_checkpoint_of_another_run_or_config_is_not_loaded(tmp_path):
    ours = RunIdentity("a", "b")
    with Checkpoints(tmp_path, run=ours) as checkpoints:
        checkpoints.save(1, make_state(1))
    for name, other in (("run", RunIdentity("x", "b")), ("config", RunIdentity("a", "x"))):
        said = f"the checkpoint is of another {name}"
        with (
            Checkpoints(tmp_path, read_only=True, run=other) as checkpoints,
            pytest.raises(UserError, match=said),
        ):
            checkpoints.restore(template())
    for same in (ours, None):
        with Checkpoints(tmp_path, read_only=True, run=same) as checkpoints:
            assert checkpoints.restore(template())[0] == 1


def test_notes_come_back_with_their_step(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(1), {"window": {"loss": ["0x1.8p+0"]}})
        checkpoints.save(2, make_state(2))
        checkpoints.wait()
        assert checkpoints.notes(1) == {"window": {"loss": ["0x1.8p+0"]}}
        assert checkpoints.notes(2) == {}
        assert checkpoints.restore(template())[0] == 2


def test_checkpoints_that_a_killed_process_did_not_delete_are_deleted(folder):
    with Checkpoints(folder, keep=2) as checkpoints:
        assert checkpoints.steps() == [100, 200, 300]
        checkpoints.prune()
        assert checkpoints.steps() == [200, 300]
    assert sorted(path.name for path in folder.iterdir()) == ["200", "300"]


def test_another_model_is_an_error_and_not_damage(folder):
    def changed(**params):
        return template() | {"params": template()["params"] | params}

    spec = jax.ShapeDtypeStruct
    with Checkpoints(folder) as checkpoints:
        with pytest.raises(UserError, match=r"params/head/bias is bfloat16\[8\].*bfloat16\[9\]"):
            checkpoints.restore(changed(head={"bias": spec((9,), jnp.bfloat16)}))
        with pytest.raises(UserError, match=r"bfloat16\[8\] there and float32\[8\] in this run"):
            checkpoints.restore(changed(head={"bias": spec((8,), jnp.float32)}))
        with pytest.raises(
            UserError, match=r"params/head/biases is missing.*nearest.*params/head/bias\."
        ):
            checkpoints.restore(changed(head={"biases": spec((8,), jnp.bfloat16)}))
        with pytest.raises(UserError, match=r"params/head/bias is .* and missing in this run"):
            checkpoints.restore(changed(head={}))
        with pytest.raises(UserError, match="no item 'momentum'"):
            checkpoints.restore({"momentum": template()["params"]})
        assert checkpoints.steps() == [100, 200, 300]


def test_reading_writes_nothing(folder):
    (folder / "400.orbax-checkpoint-tmp").mkdir()
    damage(payload(folder, 300, "params"))
    before = sorted(folder.rglob("*"))
    with Checkpoints(folder, read_only=True) as checkpoints:
        assert checkpoints.restore(template())[0] == 200
        with pytest.raises(ValueError, match="read-only"):
            checkpoints.save(500, make_state(500))
    assert sorted(folder.rglob("*")) == before
    with Checkpoints(folder / "nowhere", read_only=True) as checkpoints:
        assert checkpoints.latest() is None
        with pytest.raises(UserError, match="no checkpoint in"):
            checkpoints.restore_params()
    assert not (folder / "nowhere").exists()


def test_unfinished_folders_are_removed(folder):
    (folder / "350.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.latest() == 300
        checkpoints.save(400, make_state(400))
    assert sorted(p.name for p in folder.iterdir()) == ["200", "300", "400"]


def test_what_cannot_be_kept_is_refused_before_anything_is_written(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(TypeError, match="key has dtype key<fry>"):
            checkpoints.save(1, {"params": {"key": jax.random.key(0)}})
        with pytest.raises(ValueError, match=r"x is empty, with shape \(0, 3\)"):
            checkpoints.save(1, {"params": {"x": jnp.zeros((0, 3))}})
        for name in ("layout", "notes"):
            with pytest.raises(ValueError, match=f"'{name}'"):
                checkpoints.save(1, {name: jnp.int32(1)})
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="keep = 0"):
        Checkpoints(tmp_path, keep=0)


def test_a_failed_save_is_raised_and_the_steps_before_stay(folder, monkeypatch):
    def full(self):
        raise OSError("no space left")

    monkeypatch.setattr(Checkpoints, "_seal", full)
    checkpoints = Checkpoints(folder)
    checkpoints.save(400, make_state(400))
    with pytest.raises(OSError, match="no space left"):
        checkpoints.wait()
    assert checkpoints.restore(template())[0] == 300
    checkpoints.close()
    monkeypatch.undo()
    write(folder, [400])
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.restore(template())[0] == 400


def test_the_rest_of_a_failed_save_does_not_disturb_the_next(folder, monkeypatch, caplog):
    seal = Checkpoints._seal

    def full(self):
        if self._saving == 400:
            raise OSError("no space left")
        seal(self)

    monkeypatch.setattr(Checkpoints, "_seal", full)
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(400, make_state(400))
        with pytest.raises(OSError, match="no space left"):
            checkpoints.wait()
        assert any("tmp" in p.name for p in folder.iterdir())
        assert checkpoints.save(410, make_state(410))
        assert checkpoints.restore(template())[0] == 410
    assert (folder / "410" / MANIFEST).exists()
    assert not caplog.records


def test_other_users_of_absl_logging_are_still_heard(caplog):
    from absl import logging as absl_logging

    with caplog.at_level(logging.INFO, logger="absl"):
        absl_logging.warning("from elsewhere")
    assert "from elsewhere" in caplog.text
