"""Make the tables of plans in docs/performance.md: the needs of each training on TPUs and GPUs.

    pip install -e '.[tpu]'                    # or '.[gpu]', in a separate environment
    python benchmarks/_plans.py                # all plans: minutes for each plan
    python benchmarks/_plans.py MAE v5e:8x8    # plans whose name has all these words

A plan is the result of `occinv plan --search`. The plans of the second table, about the memory of
negatives, are made without `--search`. After each plan, docs/plans.json and the tables are written,
so an interrupted run can continue. Plans whose compiler is not installed are skipped: run it with
the compiler of TPUs and with that of GPUs. `make bench` does not run this file.
"""

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from occinv import schema
from occinv.config import CONFIGS, load_config
from occinv.plan.chips import describe_slice, parse
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
    "R-MAE": ("rmae", ()),
    "C-MAE": ("cmae", CHUNKED),
    "MoCo v3": ("mocov3", CHUNKED),
    "DINO": ("dino", ()),
    "supervised": ("supervised", ()),
}
SLICES = "v5e:8x8", "v6e:8x8", "h100:8x8"
IMAGENET = 1000, 1281167
PACES = "roofline", "estimated"  # GPUs have no estimate
KEPT = "needed", "fits", "fsdp", "remat", "accumulate", "durations"

# C-MAE with the tokens of all images as negatives, with all keys at once and in key chunks.
ALL, POD, BATCHES = "objective.negatives=batch", "h100:8x8", (1024, 4096, 16384)
NEGATIVES = {"all negatives at once": (ALL,), "in key chunks of 256": (ALL, *CHUNKED)}


class Case(NamedTuple):
    """A plan to make."""

    key: str
    config: str
    fields: tuple[str, ...]
    topology: str
    is_search: bool


def cases() -> Iterator[Case]:
    """Yield the plans of all tables, in the order in which they are made."""
    for row, (config, fields) in ROWS.items():
        for topology in SLICES:
            given = ("train.batch_size=4096", *fields)
            yield Case(f"{row} @ {topology}", config, given, topology, True)
    for batch in BATCHES:
        for row, fields in NEGATIVES.items():
            given = (f"train.batch_size={batch}", *fields)
            yield Case(f"{row}, {batch}", "cmae", given, POD, False)


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
    """Format the memory, then utilization and hours for each of PACES, then the changes."""
    if found is None:
        return ""
    changes = [
        *(["remat"] if found["remat"] else []),
        *(f"{name} {found[name]}" for name in ("fsdp", "accumulate") if found[name] > 1),
    ]
    if not found["fits"]:
        return " · ".join(["no", *changes])
    paces = [found["durations"][pace] for pace in PACES if pace in found["durations"]]
    utilizations = ", ".join(f"{pace['utilization']:.0%}" for pace in paces)
    hours = ", ".join(f"{pace['hours']:.2g}" for pace in paces)
    return " · ".join([f"{found['needed'] / 2**30:.1f} GiB", utilizations, f"{hours} h", *changes])


def tables(made: dict[str, dict[str, Any]]) -> str:
    """Format both tables as Markdown: the plans of ROWS, and those about negatives."""
    heads = []
    for topology in SLICES:
        memory = parse(topology)[0].memory / 2**30
        heads.append(f"{topology}, {memory:.3g} GiB")
    lines = [f"| ViT-B/16, 4096 images | {' | '.join(heads)} |", "| --- |" + " --- |" * len(SLICES)]
    for row in ROWS:
        cells = [cell(made.get(f"{row} @ {topology}")) for topology in SLICES]
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
