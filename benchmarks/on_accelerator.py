"""Measure utilization, the ratio to PyTorch and a loss curve on one GPU or TPU, in minutes.

    pip install -e .
    python benchmarks/on_accelerator.py --out DIR

Install PyTorch, too, for the comparison. The command prints and writes to DIR/on_accelerator.json:

- device, driver and versions,
- the FLOP/s of products of large bfloat16 matrices,
- the train steps of MAE with ViT-B/16 and ViT-L/16 for each attention backend, and of R-MAE, C-MAE,
  MoCo v3 and DINO with ViT-B/16: FLOP/s of the model's matrix products as a share of those,
- the step of MAE in PyTorch on the same GPU,
- the loss of a small MAE in float32 and bfloat16 beside the CPU's float32, from the same parameters
  and images,
- whether `occinv train`, stopped and resumed in another process, ends with the same bits.

A part that fails is a note, and so is a part for which `--minutes` leaves less time than the
longest part took. On CPU everything is tiny, and only ratios are printed.
"""

import os

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs memory, too

import argparse
import json
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _steps import flops_of, make_batch, ours, prepare, products, start, theirs, time_in_turn
from jax.extend.backend import get_backend

from occinv import parallel
from occinv.encoder import load_encoder
from occinv.train.step import trace_step

BACKENDS = ("auto", "xla")  # train.attention; auto is the fused kernel: cudnn or pallas
LARGE = ("encoder.name=large",)
# Name, config, variant, fields, images per step; the most important first.
MAE = {
    "MAE ViT-B/16": ("mae", "imagenet", (), 256),
    "MAE ViT-L/16": ("mae", "imagenet", LARGE, 128),
}
OTHERS = {
    "R-MAE ViT-B/16": ("rmae", "imagenet", (), 128),
    "C-MAE ViT-B/16": ("cmae", "imagenet", (), 64),
    "MoCo v3 ViT-B/16": ("mocov3", "imagenet", (), 128),
    "DINO ViT-B/16": ("dino", "imagenet", (), 32),
}
SHALLOW = ("encoder.depth=1",)
TINY = {"MAE tiny": ("mae", "smoke", SHALLOW, 8)}
RESUMED = (
    "mae:tiny_imagenet",
    "encoder.name=small",
    "train.batch_size=256",
    "data.source=photos:64",
)
RESUMED_STEPS = 60
CURVE = ("train.duration.steps=200", "optimizer.warmup.steps=20")
# The CPU's compiler in half the time, for miniatures.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


class Report:
    """What was measured: printed line by line, and written to a file after each part."""

    def __init__(self, out: Path | None, minutes: float) -> None:
        self.out = out
        self.parts: dict[str, Any] = {"notes": []}
        self.end = time.monotonic() + 60 * minutes
        self.longest = 0.0  # seconds of a part so far

    def note(self, text: str) -> None:
        """Print and keep a line about what was left out."""
        self.parts["notes"].append(text)
        print(f"note: {text}", flush=True)

    def run(self, name: str, measure: Callable[[], Any]) -> Any:
        """Keep and return what `measure` returns; None if it fails or no time is left."""
        began = time.monotonic()
        left = self.end - began
        result = None
        if left < self.longest:
            self.note(f"{name}: left out, {max(left, 0):.0f} seconds left")
        else:
            try:
                result = self.parts[name] = measure()
            except Exception as error:  # such as a backend that this device lacks
                first_line = (str(error).strip() or "no reason given").splitlines()[0]
                self.note(f"{name}: {type(error).__name__}: {first_line[:300]}")
            self.longest = max(self.longest, time.monotonic() - began)
        if self.out is not None:
            self.out.mkdir(parents=True, exist_ok=True)
            (self.out / "on_accelerator.json").write_text(json.dumps(self.parts, indent=1) + "\n")
        return result


def describe() -> dict[str, Any]:
    """Return device, driver and versions."""
    device = jax.devices()[0]
    found = {"device": device.device_kind, "platform": device.platform}
    found["runtime"] = " ".join(get_backend().platform_version.split())
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        shown = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        found["driver"] = (shown.splitlines() or [""])[0]
    found["python"] = platform.python_version()
    installed = {x.metadata["Name"].lower(): x.version for x in metadata.distributions()}
    names = ("jax", "jaxlib", "flax", "optax", "torch")
    found |= {name: installed[name] for name in names if name in installed}
    print(", ".join(f"{name} {value}" for name, value in found.items()), flush=True)
    return found


class Steps:
    """Measures train steps against the products of large matrices."""

    def __init__(self, is_tiny: bool) -> None:
        self.is_tiny = is_tiny
        self.rounds = 3 if is_tiny else 10
        self.peak = 0.0  # FLOP/s

    def measure_peak(self) -> dict[str, float]:
        """Measure the FLOP/s of products of large matrices."""
        size, count = (512, 1) if self.is_tiny else (8192, 20)
        dtype = jnp.float32 if self.is_tiny else jnp.bfloat16
        seconds = time_in_turn({"": products(dtype, size, count)}, self.rounds)[""]
        self.peak = float(2 * size**3 * count / statistics.median(seconds))
        if not self.is_tiny:
            print(f"products of large matrices: {self.peak / 1e12:.0f} TFLOP/s", flush=True)
        return {"size": size, "flops": self.peak}

    def measure(
        self, name: str, model: tuple[str, str, tuple[str, ...], int], in_torch: str | None = None
    ) -> dict[str, float]:
        """Measure the step of a model, of PyTorch's MAE on the device `in_torch` if given."""
        config, variant, fields, images = model
        run = prepare(config, variant, fields, images)
        batch = make_batch(run)
        began = time.perf_counter()
        if in_torch is None:
            step = ours(run, batch, QUICK if jax.default_backend() == "cpu" else None)
        else:
            step = theirs(run, batch, in_torch)
        step()
        waited = time.perf_counter() - began
        seconds = float(np.median(time_in_turn({"": step}, self.rounds)[""]))
        flops = images * flops_of(run) / seconds
        found = {
            "images": images,
            "seconds": seconds,
            "images_per_second": images / seconds,
            "flops": flops,
            "of_products": flops / self.peak,
            "start_seconds": waited,
        }
        shown = f"{name:36} {found['of_products']:6.1%} of products"
        if not self.is_tiny:
            shown += f" {1e3 * seconds:8.1f} ms {images / seconds:8.0f} images/s"
        print(shown, flush=True)
        return found


def has_torch() -> str | None:
    """Return why PyTorch does not see the GPU, or None."""
    try:
        import torch
    except ImportError:
        return "it is not installed"
    return None if torch.cuda.is_available() else "it sees no GPU"


def losses(
    device: jax.Device, precision: str, fields: tuple[str, ...], steps: int, images: int
) -> list[float]:
    """Return the losses of the steps of a small MAE. Parameters and images are from the CPU."""
    run = prepare("mae", "smoke", (*CURVE, *fields, f"train.precision={precision}"), images, device)
    cpu = jax.devices("cpu")[0]
    with jax.default_device(cpu):
        first = start(run, QUICK)
    state = jax.device_put(jax.device_get(first), parallel.of_state(run.mesh, first))
    with jax.default_matmul_precision("highest" if precision == "float32" else "default"):
        lowered = trace_step(run, state).lower()
    program = lowered.compile(compiler_options=QUICK if device == cpu else None)
    batches = [parallel.put_batch(run.mesh, make_batch(run, seed)) for seed in range(4)]
    found = []
    for step in range(steps):
        state, metrics = program(state, batches[step % len(batches)])
        found.append(float(metrics["loss"]))
    return found


def curves(is_tiny: bool) -> dict[str, Any]:
    """Compare the loss curves of the device with that of the CPU."""
    size = (SHALLOW, 5, 8) if is_tiny else ((), 200, 64)
    reference = losses(jax.devices("cpu")[0], "float32", *size)
    found: dict[str, Any] = {"cpu_float32": reference}
    is_cpu = jax.default_backend() == "cpu"
    for precision in ("bfloat16",) if is_cpu else ("float32", "bfloat16"):
        curve = losses(jax.devices()[0], precision, *size)
        difference = max(abs(a - b) for a, b in zip(curve, reference, strict=True))
        found |= {precision: curve, f"{precision}_difference": difference}
        print(
            f"loss of {len(curve)} steps in {precision}: {curve[0]:.4f} to {curve[-1]:.4f}, at "
            f"most {difference:.2g} from the CPU's in float32, {reference[-1]:.4f} at the end",
            flush=True,
        )
    return found


def train(workdir: Path, config: str, *arguments: str) -> None:
    """Run `occinv train` in a process of its own. Raise RuntimeError with its last line."""
    words = [sys.executable, "-m", "occinv", "train", "--config", config, "--workdir", str(workdir)]
    done = subprocess.run([*words, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.splitlines() or ["no message"])[-1])


def end_of(workdir: Path) -> tuple[list[float], dict[str, Any]]:
    """Return the losses of a run and the parameters of its last checkpoint."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    return losses, load_encoder(workdir).params


def resumed(is_tiny: bool) -> dict[str, Any]:
    """Compare a run of one process with the same run stopped and resumed in a second process."""
    config, *fields = ("mae:smoke", *SHALLOW) if is_tiny else RESUMED
    steps = 4 if is_tiny else RESUMED_STEPS
    every = (f"train.duration.steps={steps}", "train.log_every.steps=1")
    given = [f"--config.{field}" for field in (*fields, *every)]
    with tempfile.TemporaryDirectory() as folder:
        whole, parts = Path(folder) / "whole", Path(folder) / "parts"
        train(whole, config, *given)
        train(parts, config, *given, f"--config.train.stop_after.steps={steps // 2}")
        train(parts, config, *given, "--extend")
        (losses, params), (losses_resumed, params_resumed) = end_of(whole), end_of(parts)
    found = {
        "losses": losses == losses_resumed,
        "parameters": jax.tree.all(jax.tree.map(np.array_equal, params, params_resumed)),
    }
    print(f"a resumed run ends with the same losses and parameters: {found}", flush=True)
    return {**found, "steps": steps}


def main(arguments: list[str] | None = None) -> int:
    """Measure everything; return 1 if no step could be measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--out", type=Path, metavar="DIR", help="Write on_accelerator.json to this folder.")
    add(
        "--minutes",
        type=float,
        default=8,
        help="Leave out what would probably end later (default: 8).",
    )
    add("--miniature", action="store_true", help="Use tiny models, as on CPU.")
    options = parser.parse_args(arguments)
    is_tiny = options.miniature or jax.default_backend() == "cpu"
    report, steps = Report(options.out, options.minutes), Steps(is_tiny)
    report.run("environment", describe)
    if report.run("products", steps.measure_peak) is None:
        return 1
    best: dict[str, dict[str, float]] = {}  # the fastest step of each MAE

    def measure_mae(model: str) -> None:
        config, variant, fields, images = (TINY | MAE)[model]
        for backend in BACKENDS[:1] if is_tiny else BACKENDS:
            name = f"{model} attention={backend}"
            spec = config, variant, (*fields, f"train.attention={backend}"), images
            found = report.run(name, lambda name=name, spec=spec: steps.measure(name, spec))
            if found and (model not in best or found["seconds"] < best[model]["seconds"]):
                best[model] = found

    first, *rest = TINY if is_tiny else MAE
    measure_mae(first)
    reason = has_torch()
    if reason is not None:
        report.note(f"PyTorch's MAE is left out: {reason}")
    elif first in best:
        name = f"{first} in PyTorch"
        model = (TINY | MAE)[first]
        found = report.run(name, lambda: steps.measure(name, model, "cuda"))
        if found:
            ratio = best[first]["images_per_second"] / found["images_per_second"]
            report.parts["images_per_second_against_pytorch"] = ratio
            print(f"{first} against PyTorch: {ratio:.2f} times the images per second", flush=True)
    report.run("loss curves", lambda: curves(is_tiny))
    report.run("resumed run", lambda: resumed(is_tiny))
    for model in rest:
        measure_mae(model)
    for name, spec in ({} if is_tiny else OTHERS).items():
        report.run(name, lambda name=name, spec=spec: steps.measure(name, spec))
    report.run("products at the end", steps.measure_peak)
    return 0 if best else 1


if __name__ == "__main__":
    sys.exit(main())
