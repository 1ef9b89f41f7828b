"""The tables of plans in docs/performance.md: what every training needs on which TPU slice.

    pip install 'occinv[tpu]'                  # into an environment of its own
    python benchmarks/_plans.py                # hours: minutes for each of the plans
    python benchmarks/_plans.py MAE v5e:8x8    # only those rows and slices

Each plan is what `occinv plan --search` says; the second table, of the memory that negatives take,
is without `--search`. They are kept in docs/plans.json, so that an interrupted run goes on where it
was, and the tables are written anew after each. `make bench` leaves this file out.
"""

import json
import logging
import sys
from collections.abc import Iterator
from math import prod
from pathlib import Path

from occinv import schema
from occinv.config import CONFIGS, load_config
from occinv.plan.chips import CHIPS, parse, slice_devices
from occinv.plan.plan import make_plan, search

DOCS = Path(__file__).resolve().parent.parent / "docs"
STORE, PAGE = DOCS / "plans.json", DOCS / "performance.md"
BEGIN, END = "<!-- plans -->\n", "<!-- end of plans -->\n"

LARGE, HUGE = ("encoder.name=large",), ("encoder.name=huge", "encoder.patch_size=14")
IN_BLOCKS = ("objective.block=256",)
ROWS = {
    "MAE": ("mae", ()),
    "MAE, ViT-L": ("mae", LARGE),
    "MAE, ViT-H/14": ("mae", HUGE),
    "C-MAE": ("cmae", IN_BLOCKS),
    "R-MAE": ("rmae", ()),
    "MoCo v3": ("mocov3", IN_BLOCKS),
    "DINO": ("dino", ()),
    "BEiT": ("beit", ()),
    "CAE": ("cae", ()),
    "supervised": ("supervised", ()),
    "fine-tuning": ("finetune", ()),
    "linear probe": ("linear", ()),
    "C-MAE, ViT-L": ("cmae", (*IN_BLOCKS, *LARGE)),
    "C-MAE, ViT-H/14": ("cmae", (*IN_BLOCKS, *HUGE)),
}
SLICES = ("v5e:16x16", "v5e:8x8", "v4:4x4x4", "v6e:8x8", "v6e:16x16", "v4:4x8x8",
          "v5e:2x4", "v6e:2x4", "v4:2x2x2")  # fmt: skip
IMAGENET = 1000, 1281167
KEPT = "needed", "fits", "fsdp", "remat", "accumulate", "durations"

# C-MAE with the tokens of all images as negatives, by the plain formula and by blocks.
ALL, POD, BATCHES = "objective.negatives=batch", "v5e:16x16", (1024, 2048, 4096, 8192, 16384)
NEGATIVES = {
    "all negatives at once": (ALL,),
    "by blocks of 256": (ALL, *IN_BLOCKS),
    "the loss aside (negatives of the same image)": ("objective.negatives=image", *IN_BLOCKS),
}


def plans() -> Iterator[tuple[str, str, tuple[str, ...], str, bool]]:
    """(key, config, fields, slice, whether to search) of every plan, in the order of their use."""
    for batch in BATCHES:
        for row, fields in NEGATIVES.items():
            yield f"{row}, {batch}", "cmae", (f"train.batch_size={batch}", *fields), POD, False
    for topology in SLICES:
        for row, (config, fields) in ROWS.items():
            given = ("train.batch_size=4096", *fields)
            yield f"{row} @ {topology}", config, given, topology, True


def make(config: str, fields: tuple[str, ...], topology: str, is_search: bool) -> dict:
    """The last plan of a search, or of one without the memory alone, as JSON."""
    path = Path(CONFIGS) / f"{config}.py"
    given = [f"--config.{field}" for field in fields]
    experiment = schema.resolve(load_config(str(path), given))
    chip, _ = parse(topology)
    arguments = experiment, slice_devices(topology), chip, *IMAGENET
    if is_search:
        found = list(search(*arguments))[-1].as_dict(chip)
        return {name: found[name] for name in KEPT}
    plan = make_plan(*arguments)
    return {"needed": plan.needed, "fits": plan.fits}


def cell(found: dict | None) -> str:
    """Memory, the share of the peak that the roofline allows, hours, and what had to be changed."""
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


def tables(made: dict[str, dict]) -> str:
    """All tables as Markdown, one for each chip."""
    lines = []
    for name in sorted({topology.partition(":")[0] for topology in SLICES}):
        slices = sorted((s for s in SLICES if parse(s)[0] is CHIPS[name]), key=parse)
        heads = [f"{prod(parse(s)[1])} chips ({s})" for s in slices]
        lines += [f"| {name}, {CHIPS[name].memory / 2**30:g} GiB | {' | '.join(heads)} |"]
        lines += ["| --- |" + " --- |" * len(slices)]
        for row in ROWS:
            cells = [cell(made.get(f"{row} @ {s}")) for s in slices]
            lines.append(f"| {row} | {' | '.join(cells)} |")
        lines.append("")
    lines += [f"| C-MAE on {POD}: images a step | {' | '.join(map(str, BATCHES))} |"]
    lines += ["| --- |" + " ---: |" * len(BATCHES)]
    for row in NEGATIVES:
        cells = []
        for batch in BATCHES:
            found = made.get(f"{row}, {batch}")
            size = f"{found['needed'] / 2**30:.1f} GiB" if found else ""
            cells.append(size if not found or found["fits"] else f"no: {size}")
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def keep(made: dict[str, dict]) -> None:
    """Writes the plans, one a line, and the tables."""
    lines = (f"{json.dumps(key)}: {json.dumps(found)}" for key, found in made.items())
    STORE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{tables(made)}\n{END}{rest.partition(END)[2]}")


def main(*only: str) -> None:
    """Makes the plans that are not there yet: all, or those of which `only` names all words."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for key, *what in plans():
        made = json.loads(STORE.read_text()) if STORE.exists() else {}
        if key in made or not all(word in key for word in only):
            continue
        print(key, flush=True)
        made[key] = make(*what)
        keep(made)


if __name__ == "__main__":
    main(*sys.argv[1:])
