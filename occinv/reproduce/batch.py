"""The table `batch`: objectives by batch size, at equal epochs and at equal steps."""

from __future__ import annotations

from occinv.reproduce import methods
from occinv.reproduce.methods import Method
from occinv.reproduce.specs import SCALES, RowSpec, TableSpec

EPOCHS, STEPS = "equal epochs", "equal steps"

# By scale: the batch sizes, the images that a device computes at once, the steps of a log entry.
SIZES = {
    "smoke": (16, 32),
    "quickstart": (32, 64, 128),
    "small": (64, 256, 1024, 4096),
    "paper": (256, 1024, 4096, 16384),
}
AT_ONCE = {"smoke": 16, "quickstart": 128, "small": 256, "paper": 128}
LOG_EVERY = {"smoke": 1, "quickstart": 1, "small": 5, "paper": 10}

OBJECTIVES = {
    "Supervised": methods.SUPERVISED,
    "MAE": methods.MAE,
    "R-MAE": methods.RMAE,
    "C-MAE, position": methods.CMAE,
    "C-MAE, image": methods.CMAE.variant("cmae_image", "objective.negatives=image"),
    "C-MAE, batch": methods.CMAE.variant(
        "cmae_batch", "objective.negatives=batch", "objective.key_chunk=256"
    ),
    "C-MAE, BYOL": methods.CMAE_BYOL,
    "MoCo v3": methods.MOCOV3,
    "DINO": methods.DINO,
}


def batch_table(scale: str) -> TableSpec:
    """The table at a scale. At scale `paper`, rows at equal steps only run by their keys."""
    every = LOG_EVERY[scale]
    rows = [
        make_row(name, method, scale, size, budget)
        for budget in (EPOCHS, STEPS)
        for name, method in OBJECTIVES.items()
        for size in SIZES[scale]
        if budget == EPOCHS or size != SIZES[scale][0]
    ]
    return TableSpec(
        key="batch",
        subject="Objectives by batch size",
        rows=(*rows, RowSpec("Random init", methods.RANDOM, epochs=None)),
        columns=("finetune", "knn", "loss", "nonfinite", "spikes", "dips", "speed"),
        cka=("pretrained",),
        layout="batch",
        at_once=AT_ONCE[scale],
        notes=(
            "The learning rate of pretraining is proportional to the batch size, unless "
            "--pretrain.optimizer.scale says otherwise. Fine-tuning is the same for all rows.",
            *([f"A log entry is the mean of {every} steps."] if every > 1 else []),
            "C-MAE: the negatives are the same position of other images, other positions of the "
            "image, or all tokens of the batch; BYOL has none.",
        ),
    )


def make_row(name: str, method: Method, scale: str, size: int, budget: str) -> RowSpec:
    """The row of an objective, a batch size and a budget.

    At equal steps, the run has as many steps as at the smallest batch size, and so more epochs.
    """
    from occinv.reproduce.run import load_experiment  # here, because it imports JAX

    smallest = SIZES[scale][0]
    experiment = load_experiment(f"{method.config}:{SCALES[scale].variant}")
    has_steps = experiment.train.duration.steps is not None
    # A length in steps is the same at equal steps, one in epochs at equal epochs.
    length = (
        {EPOCHS: smallest / size, STEPS: 1.0}
        if has_steps
        else {EPOCHS: 1.0, STEPS: size / smallest}
    )
    fields = (
        f"train.batch_size={size}",
        f"train.log_every.steps={LOG_EVERY[scale]}",
        "train.max_nonfinite=100",
    )
    suffix = "_steps" if budget == STEPS else ""
    return RowSpec(
        name=f"{name}, {size}" + (f", {STEPS}" if budget == STEPS else ""),
        method=method.variant(
            f"{method.key}_batch{size}{suffix}",
            *fields,
            length=length[budget],
            warmup=length[budget],
        ),
        epochs=None,
        by_default=budget == EPOCHS or scale != "paper",
        batch_size=size,
        curve=name,
        budgets=(EPOCHS, STEPS) if size == smallest else (budget,),
    )
