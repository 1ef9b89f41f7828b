"""Make the tables of plans in docs/performance.md: the needs of each training on TPUs and GPUs.

    pip install -e '.[tpu]'                    # or '.[gpu]', in a separate environment
    python benchmarks/_plans.py                # all plans: hours, minutes for each plan
    python benchmarks/_plans.py MAE v5e:8x8    # plans whose name has all these words

A plan is the result of `occinv plan --search`. The plans of the last table, about the memory of
negatives, are made without `--search`. After each plan, docs/plans.json and the tables are written,
so an interrupted run can continue. Plans whose compiler is not installed are skipped: run it with
the compiler of TPUs and with that of GPUs. `make bench` does not run this file.
"""

import json
import logging
import sys
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from occinv import schema
from occinv.config import CONFIGS, load_config
from occinv.plan.chips import CHIPS, describe_slice, parse
from occinv.plan.plan import make_plan, search

DOCS = Path(__file__).resolve().parent.parent / "docs"
STORE, PAGE = DOCS / "plans.json", DOCS / "performance.md"
BEGIN, END = "<!-- plans -->\n", "<!-- end of plans -->\n"

LARGE, HUGE = ("encoder.name=large",), ("encoder.name=huge", "encoder.patch_size=14")
CHUNKED = ("objective.key_chunk=256",)
ROWS = {
    "MAE": ("mae", ()),
    "MAE, ViT-L": ("mae", LARGE),
    "MAE, ViT-H/14": ("mae", HUGE),
    "C-MAE": ("cmae", CHUNKED),
    "R-MAE": ("rmae", ()),
    "MoCo v3": ("mocov3", CHUNKED),
    "DINO": ("dino", ()),
    "BEiT": ("beit", ()),
    "CAE": ("cae", ()),
    "supervised": ("supervised", ()),
    "fine-tuning": ("finetune", ()),
    "linear probe": ("linear", ()),
    "C-MAE, ViT-L": ("cmae", (*CHUNKED, *LARGE)),
    "C-MAE, ViT-H/14": ("cmae", (*CHUNKED, *HUGE)),
}
SLICES = ("v5e:16x16", "v5e:8x8", "v4:4x4x4", "v6e:8x8", "v6e:16x16", "v4:4x8x8",
          "v5e:2x4", "v6e:2x4", "v4:2x2x2", "tpu7x:2x2x1", "tpu7x:4x4x4",
          "h100:8", "h100:8x8", "a100:8", "b200:8")  # fmt: skip
IMAGENET = 1000, 1281167
KEPT = "needed", "fits", "fsdp", "remat", "accumulate", "durations"

# C-MAE with the tokens of all images as negatives, with all keys at once and in key chunks.
ALL, POD, BATCHES = "objective.negatives=batch", "v5e:16x16", (1024, 2048, 4096, 8192, 16384)
NEGATIVES = {
    "all negatives at once": (ALL,),
    "in key chunks of 256": (ALL, *CHUNKED),
    "only negatives of the same image": ("objective.negatives=image", *CHUNKED),
}


class Case(NamedTuple):
    """A plan to make."""

    key: str
    config: str
    fields: tuple[str, ...]
    topology: str
    is_search: bool


def cases() -> Iterator[Case]:
    """Yield the plans of all tables, in the order in which they are made."""
    for batch in BATCHES:
        for row, fields in NEGATIVES.items():
            given = (f"train.batch_size={batch}", *fields)
            yield Case(f"{row}, {batch}", "cmae", given, POD, False)
    for topology in SLICES:
        for row, (config, fields) in ROWS.items():
            given = ("train.batch_size=4096", *fields)
            yield Case(f"{row} @ {topology}", config, given, topology, True)


def make(case: Case) -> dict[str, Any]:
    """Return the last plan of a search, or the memory of a single plan, as JSON."""
    given = [f"--config.{field}" for field in case.fields]
    experiment = schema.resolve(load_config(f"{CONFIGS}/{case.config}.py", given))
    arguments = experiment, describe_slice(case.topology), *IMAGENET
    if case.is_search:
        found = list(search(*arguments))[-1].as_json()
        return {name: found[name] for name in KEPT}
    plan = make_plan(*arguments)
    return {"needed": plan.needed, "fits": plan.fits}


def cell(found: dict[str, Any] | None) -> str:
    """Format memory, utilization at the roofline, hours, and the changes that were needed."""
    if found is None:
        return ""
    changes = [
        *(["remat"] if found["remat"] else []),
        *(f"{name} {found[name]}" for name in ("fsdp", "accumulate") if found[name] > 1),
    ]
    if not found["fits"]:
        return " · ".join(["no", *changes])
    line = found["durations"]["roofline"]
    memory, hours = f"{found['needed'] / 2**30:.1f} GiB", line["hours"]
    duration = f"{hours:.2g} h" if hours < 100 else f"{hours:.0f} h"
    return " · ".join([memory, f"{line['utilization']:.0%}", duration, *changes])


def tables(made: dict[str, dict[str, Any]]) -> str:
    """Format all tables as Markdown: one per chip, and one about negatives."""
    lines = []
    for name in sorted({topology.partition(":")[0] for topology in SLICES}):
        slices = sorted((s for s in SLICES if parse(s)[0] is CHIPS[name]), key=parse)
        chip = CHIPS[name]
        units = "GPUs" if chip.is_gpu else "chips"
        heads = [f"{prod(parse(s)[1])} {units} ({s})" for s in slices]
        size = f"{chip.memory / 2**30:.3g} GiB" + " per device" * (chip.devices > 1)
        lines += [f"| {name}, {size} | {' | '.join(heads)} |"]
        lines += ["| --- |" + " --- |" * len(slices)]
        for row in ROWS:
            cells = [cell(made.get(f"{row} @ {s}")) for s in slices]
            lines.append(f"| {row} | {' | '.join(cells)} |")
        lines.append("")
    lines += [f"| C-MAE on {POD}: images per step | {' | '.join(map(str, BATCHES))} |"]
    lines += ["| --- |" + " ---: |" * len(BATCHES)]
    for row in NEGATIVES:
        cells = []
        for batch in BATCHES:
            found = made.get(f"{row}, {batch}")
            size = f"{found['needed'] / 2**30:.1f} GiB" if found else ""
            cells.append(size if not found or found["fits"] else f"no: {size}")
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def save(made: dict[str, dict[str, Any]]) -> None:
    """Write the plans, one per line, and the tables."""
    lines = (f"{json.dumps(key)}: {json.dumps(found)}" for key, found in made.items())
    STORE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{tables(made)}\n{END}{rest.partition(END)[2]}")


def main(*only: str) -> None:
    """Make the missing plans: all of them, or those whose key has all words in `only`."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for case in cases():
        made = json.loads(STORE.read_text()) if STORE.exists() else {}
        if case.key in made or not all(word in case.key for word in only):
            continue
        try:
            describe_slice(case.topology)
        except schema.UserError as error:
            print(f"{case.key}: skipped. {error}", flush=True)
            continue
        print(case.key, flush=True)
        made[case.key] = make(case)
        save(made)


if __name__ == "__main__":
    main(*sys.argv[1:])
