"""Measure what the two choices of the CPU step are worth: arrays for each block, and kept memory.

    .venv/bin/python benchmarks/cpu_step.py                 both models
    .venv/bin/python benchmarks/cpu_step.py ViT-tiny/4      one model

Each case is a process of its own: MAE's step with the parameters of all blocks in stacks, then with
arrays for each block (`split_blocks`), then also with freed memory kept (`keep_freed_memory`). It
prints the CPU time of user and system, of a step and of compiling, as ratios to the first case.
"""

import json
import resource
import statistics
import subprocess
import sys

MODELS = {  # variant of the configs, fields, images per step
    "ViT-tiny/4": ("tiny_imagenet", ("encoder.patch_size=4", "data.image_size=32"), 64),
    "ViT-B/16": ("imagenet", (), 4),
}
CASES = {
    "stacks": (False, False),
    "arrays for each block": (True, False),
    "and memory kept": (True, True),
}
ROUNDS = 5


def cpu_seconds() -> float:
    """Return the CPU time of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def measure(model: str, is_split: bool, is_kept: bool) -> dict[str, float]:
    """Return the CPU seconds of compiling, and of a step."""
    from occinv.commands.allocator import keep_freed_memory

    if is_kept:
        keep_freed_memory()
    import jax
    from _steps import make_batch, prepare, start

    from occinv.train import step

    step.is_split = lambda run: is_split
    variant, fields, images = MODELS[model]
    run = prepare("mae", variant, fields, images)
    batch = make_batch(run)
    state = step.split_state(run, start(run))
    began = cpu_seconds()
    compiled = step.trace_step(run, state).lower().compile()
    found = {"compiling": cpu_seconds() - began}
    times = []
    for _ in range(ROUNDS + 1):
        began = cpu_seconds()
        state, _ = jax.block_until_ready(compiled(state, batch))
        times.append(cpu_seconds() - began)
    return {**found, "step": statistics.median(times[1:])}


def main(*models: str) -> None:
    """Print a table of these models, or of all models."""
    print(f"{'CPU time':12} {'':24} {'step':>8} {'compiling':>12}")
    for model in models or MODELS:
        first: dict[str, float] = {}
        for name, case in CASES.items():
            command = [sys.executable, __file__, "--case", json.dumps([model, *case])]
            shown = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            found = json.loads(shown.splitlines()[-1])
            first = first or found
            ratios = {key: found[key] / first[key] for key in found}
            print(
                f"{model:12} {name:24} {ratios['step']:8.2f} {ratios['compiling']:12.2f}",
                flush=True,
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--case"]:
        print(json.dumps(measure(*json.loads(sys.argv[2]))))
    else:
        main(*sys.argv[1:])
