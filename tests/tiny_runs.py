"""Runs so small that a test can have several: images, overrides, an objective, and processes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import unflatten_dict
from forked import Forked
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image

from occinv import schema
from occinv.config import load_config
from occinv.objectives.base import Axes, Context, Objective, Terms
from occinv.objectives.ema import EMA
from occinv.train import workdir as files
from occinv.train.checkpoints import Checkpoints
from occinv.train.loop import Outcome, train
from occinv.train.writers import event_records, read_scalars
from occinv.transforms.view import View, whole

TESTS = Path(__file__).resolve().parent
CONFIGS = TESTS.parent / "configs"

ENCODER = ("encoder.patch_size=8", "encoder.width=16", "encoder.depth=1", "encoder.heads=2")
DECODER = tuple(
    f"objective.decoder_{field}" for field in ("width=16", "depth=1", "heads=2")
)  # fmt: skip
HEADS = ("objective.head_hidden=16", "objective.head_out=8")


class Scale(nn.Module):
    """An encoder of one factor for each channel."""

    @nn.compact
    def __call__(self, color: jax.Array) -> jax.Array:
        """Scale [B, 3]."""
        return color * self.param("scale", nn.initializers.normal(1.0), (3,))


def near_identity(key: jax.Array, shape: tuple[int, int], dtype: Any) -> jax.Array:
    """A kernel that starts near the identity."""
    return jnp.eye(3, dtype=dtype) + 0.1 * jax.random.normal(key, shape, dtype)


class ToyNetworks(nn.Module):
    """f and a linear head."""

    encoder: Scale
    head: nn.Dense


@dataclasses.dataclass(frozen=True, kw_only=True)
class Toy(Objective):
    """Compiles quickly, and its result changes with every fault that resuming could have.

    The loss depends on the images and their order, the PRNG keys, the step and an EMA.

    Attributes:
      nan_steps: numbers of steps, counted from 1, whose loss is NaN.
    """

    nan_steps: tuple[int, int] = (-1, -1)

    @property
    def axes(self) -> Axes:
        return Axes("noise", "noise", "average", "L2")

    @property
    def state(self) -> dict[str, Any]:
        return {"target": EMA(("encoder",), 0.5)}

    @property
    def networks(self) -> Any:
        return ToyNetworks(Scale(), nn.Dense(3, use_bias=False, kernel_init=near_identity))

    def views(self, pixels: jax.Array, rng: jax.Array) -> tuple[View, ...]:
        noise = jax.vmap(lambda key: jax.random.normal(key, (3,)))(rng)
        noisy, count = pixels + 0.1 * noise[:, None, None], self.setting.encoder.num_patches
        return whole(noisy, count), whole(pixels, count)

    def features(self, net: Any, views: tuple[View, ...], ctx: Context) -> Any:
        first, second = (view.pixels.mean((1, 2)) for view in views)
        return net.head(net.encoder(first)), ctx.target.encoder(second) + 1

    def loss(self, net: Any, z: Any, views: tuple[View, ...], ctx: Context) -> Terms:
        number = ctx.step + 1
        is_bad = (number == self.nan_steps[0]) | (number == self.nan_steps[1])
        return Terms(jnp.where(is_bad, jnp.nan, ((z[0] - z[1]) ** 2).sum(-1)), {})


def make_images(folder: Path) -> Path:
    """24 images for training and 12 held out, 20² pixels, of two classes."""
    draw = np.random.default_rng(0)
    for part, count in (("train", 12), ("val", 6)):
        for shade, name in enumerate(("dark", "light")):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(60 * shade, 200 + 55 * shade, (20, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{number:02}.png")
    return folder


def toy_config(folder: Path) -> Path:
    """A config file with the objective `Toy`, as a user may write one."""
    path = folder / "toy.py"
    path.write_text(
        "def get_config(variant='plain'):\n"
        "    return {\n"
        "        'objective': {'name': 'tiny_runs:Toy'},\n"
        "        'data': {'source': 'folder:' + variant, 'image_size': 16},\n"
        "        'encoder': {'name': 'micro', 'patch_size': 8},\n"
        "        'optimizer': {'base_lr': 1.0, 'warmup': {'steps': 2}},\n"
        "        'train': {'batch_size': 8, 'duration': {'steps': 8}},\n"
        "    }\n"
    )
    return path


def overrides(*fields: str) -> list[str]:
    """`a.b=c` as arguments of the command line."""
    return [f"--config.{field}" for field in fields]


def tiny(config: str, images: Path, *fields: str) -> list[str]:
    """The arguments `--config …` of a smoke variant, made much smaller, on `images`."""
    own = {"mae": DECODER, "rmae": DECODER, "cmae": HEADS}.get(config, ())
    common = ("train.batch_size=8", "train.log_every.steps=1", "data.image_size=16",
              f"data.source=folder:{images}", "data.num_threads=1")  # fmt: skip
    spec = ["--config", str(CONFIGS / f"{config}.py:smoke")]
    return [*spec, *overrides(*common, *ENCODER, *own, *fields)]


def start(arguments: Sequence[str], *, devices: int = 1, **variables: str) -> Forked:
    """`python -m occinv …` on so many devices, compiling fast rather than well."""
    count = "--xla_force_host_platform_device_count="
    flags = re.sub(rf"{count}\d+", f"{count}{devices}", os.environ["XLA_FLAGS"])  # of conftest.py
    environment = {**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"}
    return Forked(arguments, environment | {"XLA_FLAGS": flags} | variables)


def start_several(count: int, arguments: Sequence[str], **variables: str) -> list[Forked]:
    """`python -m occinv …` as so many processes that work together, of one device each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    together = ["--coordinator", coordinator, "--num-processes", str(count), "--process-id"]
    return [start([*arguments, *together, str(i)], **variables) for i in range(count)]


@contextlib.contextmanager
def compile_once(folder: Path) -> Iterator[None]:
    """A cache on disk of what is compiled in this block, so that the same is not compiled twice."""
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in settings}

    def use(values: dict[str, Any]) -> None:
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()  # JAX looks at the settings but once

    use(settings)
    try:
        yield
    finally:
        use(before)


def losses(workdir: Path) -> dict[int, float]:
    """The loss of every logged step; a step that stands twice in the file fails."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == sorted(set(steps))
    return {line["step"]: float(line["loss"]) for line in lines if "loss" in line}


def steps_of(workdir: Path) -> list[int]:
    """The step of every line of the log."""
    return [line["step"] for line in read_scalars(workdir / files.METRICS)]


def tensorboard(workdir: Path) -> dict[int, float]:
    """The loss of every step in the event files; a step that stands twice fails."""
    from tensorboardX.proto.event_pb2 import Event

    found: dict[int, float] = {}
    for path in sorted(workdir.glob("events.out.tfevents*")):
        for _, payload in event_records(path.read_bytes()):
            event = Event.FromString(payload)
            for value in event.summary.value:
                if value.tag == "loss":
                    assert event.step not in found
                    found[event.step] = value.simple_value
    return found


def run(
    arguments: list[str], workdir: Path, *fields: str, watch: Callable[..., None] | None = None
) -> Outcome:
    """`occinv train` without the command line."""
    given = [*arguments[2:], *overrides(*fields)]
    return train(schema.resolve(load_config(arguments[1], given)), workdir, watch)


def at_step(number: int, act: Callable[[], None]) -> Callable[..., None]:
    """A watch that does something after step `number`."""

    def watch(step: int, steps: int, metrics: dict[str, float] | None) -> None:
        if step == number:
            act()

    return watch


class Crash(Exception):
    """A process that ends without saving."""


def crash() -> None:
    raise Crash


def state_of(workdir: Path) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint, by its path."""
    with Checkpoints(workdir / files.CHECKPOINTS, read_only=True) as checkpoints:
        step = checkpoints.latest()
        layout = checkpoints._layout(step)
        template: dict[str, Any] = {
            item: {"/".join(path): np.zeros(x.shape, x.dtype) for path, x in leaves.items()}
            for item, leaves in layout.items()
        }
        nested = {
            item: unflatten_dict({tuple(name.split("/")): leaf for name, leaf in leaves.items()})
            for item, leaves in template.items()
        }
        _, items = checkpoints.restore(nested)
    found = jax.tree.leaves_with_path(items)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in found}


def assert_same_end(workdir: Path, other: Path) -> None:
    """Bit for bit: parameters, optimizer, state and counters; every loss; the last evaluation."""
    ours, theirs = state_of(workdir), state_of(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)
    assert losses(workdir) == losses(other)
    results = [json.loads((folder / files.RESULT).read_text()) for folder in (workdir, other)]
    assert {**results[0], "run": ""} == {**results[1], "run": ""}
