"""The mesh, how a batch lies on it, and the same run on one device and on eight."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from tiny_runs import losses, make_images, overrides, start, tiny

from occinv import parallel
from occinv.data.batch import Batch
from occinv.schema import UserError

COUNTS = [1, 2, 4, 8]


def make_batch(count: int) -> Batch:
    """A batch as a loader makes it, every value of which says where it stands."""
    number = np.arange(count, dtype=np.int32)
    image = np.broadcast_to(number[:, None, None, None].astype(np.uint8), (count, 2, 2, 3)).copy()
    return Batch(image, number + 100, number + 200, number.astype(np.float32))


@pytest.mark.parametrize("devices", COUNTS)
def test_a_batch_goes_to_the_devices_in_order(devices: int) -> None:
    mesh = parallel.make_mesh(jax.devices()[:devices])
    assert dict(mesh.shape) == {"data": devices, "fsdp": 1}
    assert mesh.axis_types == (AxisType.Auto, AxisType.Auto)
    batch = make_batch(8)
    there = parallel.put_batch(mesh, batch)
    for sent, arrived in zip(jax.tree.leaves(batch), jax.tree.leaves(there), strict=True):
        assert arrived.dtype == sent.dtype
        np.testing.assert_array_equal(np.asarray(arrived), sent)
        shards = arrived.addressable_shards
        assert {shard.data.shape[0] for shard in shards} == {8 // devices}
        for shard in shards:
            np.testing.assert_array_equal(np.asarray(shard.data), sent[shard.index])
        assert [shard.device for shard in shards] == list(mesh.devices.flat)


@pytest.mark.parametrize("devices", COUNTS)
def test_what_is_fetched_is_the_whole(devices: int) -> None:
    mesh = parallel.make_mesh(jax.devices()[:devices])
    there = parallel.put_batch(mesh, make_batch(8))
    weights = jax.jit(lambda b: {"w": b.weight, "sum": b.weight.sum()},
                      out_shardings=parallel.replicated(mesh))(there)  # fmt: skip
    fetched = parallel.fetch(weights)
    assert all(isinstance(x, np.ndarray) for x in fetched.values())
    np.testing.assert_array_equal(fetched["w"], np.arange(8))
    assert fetched["sum"] == 28


def test_a_mesh_takes_every_device() -> None:
    assert list(parallel.make_mesh().devices.flat) == jax.devices()
    assert dict(parallel.make_mesh(fsdp=4).shape) == {"data": 2, "fsdp": 4}
    assert list(parallel.make_mesh(fsdp=4).devices.flat) == jax.devices()
    with pytest.raises(UserError, match=r"^train\.fsdp=5 does not divide the 8 devices; use 4$"):
        parallel.make_mesh(fsdp=5)


def test_a_process_has_consecutive_images_however_its_devices_are_numbered() -> None:
    @dataclasses.dataclass(frozen=True)
    class Device:
        process_index: int
        id: int

    # As on a TPU slice: rows of chips are numbered through, a process has a square of them.
    devices = [Device(process, id) for id, process in enumerate((0, 0, 1, 1, 0, 0, 1, 1))]
    mesh = parallel.make_mesh(devices, fsdp=2)  # type: ignore[arg-type]
    assert [d.process_index for d in mesh.devices.flat] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert [d.id for d in mesh.devices.flat] == [0, 1, 4, 5, 2, 3, 6, 7]


def test_the_longest_axis_of_a_large_array_is_shared() -> None:
    mesh = parallel.make_mesh(fsdp=4)

    def lies(*shape: int) -> tuple[str | None, ...]:
        return tuple(parallel.of_state(mesh, jax.ShapeDtypeStruct(shape, np.float32)).spec)

    assert lies(12, 64, 256) == (None, None, "fsdp")
    assert lies(12, 256, 64) == (None, "fsdp")
    assert lies(64, 256, 256) == (None, None, "fsdp")  # of equals the last: never the blocks
    assert lies(256, 250) == ("fsdp",)
    assert lies(251, 253) == ()  # cannot be shared equally
    assert lies(128, 255) == ()  # too small to send for
    assert lies() == ()
    alone = parallel.of_state(parallel.make_mesh(), jax.ShapeDtypeStruct((512, 512), np.float32))
    assert tuple(alone.spec) == ()


@pytest.mark.parametrize(
    ("devices", "batch_size", "said"),
    [
        (8, 12, r"^train\.batch_size=12 is not divisible by the 8 devices; use 8 or 16$"),
        (8, 7, r"^train\.batch_size=7 is not divisible by the 8 devices; use 8$"),
        (4, 6, r"=6 is not divisible by the 4 devices; use 4 or 8$"),
    ],
)
def test_a_batch_that_cannot_be_shared(devices: int, batch_size: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parallel.check_batch(parallel.make_mesh(jax.devices()[:devices]), batch_size)


@pytest.mark.parametrize("devices", COUNTS)
def test_a_batch_that_can_be_shared(devices: int) -> None:
    mesh = parallel.make_mesh(jax.devices()[:devices])
    parallel.check_batch(mesh, devices)
    parallel.check_batch(mesh, 3 * devices)


def test_the_computation_is_float32_on_cpu_unless_told() -> None:
    assert parallel.compute_dtype("auto") == np.float32
    assert parallel.compute_dtype("float32") == np.float32
    assert parallel.compute_dtype("bfloat16") == jax.numpy.bfloat16


STEPS = ("train.duration.steps=3", "optimizer.warmup.steps=1")


def test_a_run_on_eight_devices_is_that_on_one(tmp_path: Path) -> None:
    """From the command line; tests/test_contract.py has a step of every objective.

    Sums over the batch are added in another order, hence the tolerance.
    """
    images = make_images(tmp_path / "images")
    shutil.rmtree(images / "val")  # evaluation is not the subject, and takes time to compile
    arguments = ["train", *tiny("cmae", images), *overrides(*STEPS)]
    processes = [
        start([*arguments, "--workdir", str(tmp_path / str(devices))], devices=devices)
        for devices in (1, 8)
    ]
    for process in processes:
        _, said = process.communicate()
        assert process.returncode == 0, said
    on_one, on_eight = losses(tmp_path / "1"), losses(tmp_path / "8")
    assert list(on_one) == list(on_eight) == [1, 2, 3]
    np.testing.assert_allclose(list(on_eight.values()), list(on_one.values()), rtol=2e-5)
    assert len(set(on_one.values())) == 3
