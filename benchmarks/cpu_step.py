"""Measure what the two choices of the CPU step are worth: arrays for each block, and kept memory.

    .venv/bin/python benchmarks/cpu_step.py                 both models
    .venv/bin/python benchmarks/cpu_step.py ViT-tiny/4      one model

It times MAE's step with the parameters of all blocks in stacks, and with arrays for each block
(`split_blocks`). The two take turns, so that a slow minute affects both. One process keeps freed
memory (`keep_freed_memory`), another does not. It prints ratios to the step with stacks in a
process that does not: of the time, and of the CPU time of user and system.
"""

import json
import resource
import statistics
import subprocess
import sys
import time

MODELS = {  # variant of the configs, fields, images per step
    "ViT-tiny/4": ("tiny_imagenet", ("encoder.patch_size=4", "data.image_size=32"), 64),
    "ViT-B/16": ("imagenet", (), 4),
}
FORMS = {"stacks": False, "arrays for each block": True}
ROUNDS = 7


def cpu_seconds() -> float:
    """Return the CPU time of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def measure(model: str, is_kept: bool) -> dict[str, list[list[float]]]:
    """Return the seconds and the CPU seconds of each round, by form."""
    from occinv.commands.allocator import keep_freed_memory

    if is_kept:
        keep_freed_memory()
    from _steps import make_batch, ours, prepare

    from occinv.train import step

    variant, fields, images = MODELS[model]
    run = prepare("mae", variant, fields, images)
    batch, steps = make_batch(run), {}
    for name, is_split in FORMS.items():
        step.is_split = lambda run, is_split=is_split: is_split
        steps[name] = ours(run, batch)
        steps[name]()
    found: dict[str, list[list[float]]] = {name: [] for name in FORMS}
    for _ in range(ROUNDS):
        for name, take in steps.items():
            began, worked = time.perf_counter(), cpu_seconds()
            take()
            found[name].append([time.perf_counter() - began, cpu_seconds() - worked])
    return found


def main(*models: str) -> None:
    """Print a table of these models, or of all models."""
    print(f"{'':12} {'':24} {'time':>8} {'CPU time':>12}")
    for model in models or MODELS:
        first: list[float] = []
        for is_kept in (False, True):
            command = [sys.executable, __file__, "--case", json.dumps([model, is_kept])]
            shown = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            for name, rounds in json.loads(shown.splitlines()[-1]).items():
                medians = [statistics.median(values) for values in zip(*rounds, strict=True)]
                first = first or medians
                ratios = [now / before for now, before in zip(medians, first, strict=True)]
                title = name + (", kept" if is_kept else "")
                print(f"{model:12} {title:28} {ratios[0]:6.2f} {ratios[1]:12.2f}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--case"]:
        print(json.dumps(measure(*json.loads(sys.argv[2]))))
    else:
        main(*sys.argv[1:])
