"""A whole training run, from top to bottom: prepare, start or resume, step, finish.

prepare   every check of the config against the machine and the data; nothing is written
resume    the newest good checkpoint, or a fresh state (from another run's encoder)
step      batch -> step, and now and then: log, evaluate, save
finish    the last evaluation and checkpoint, and result.json
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from clu.parameter_overview import count_parameters

from occinv import parallel
from occinv.data.batch import Batch
from occinv.data.loader import EvalLoader, TrainLoader
from occinv.data.open_source import open_source
from occinv.data.source import Source
from occinv.data.subset import Subset, select
from occinv.models import vit
from occinv.rng import image_rngs
from occinv.schema import Duration, Experiment, UserError
from occinv.train import workdir as files
from occinv.train.assemble import Assembly, assemble, model_flops, trace_step
from occinv.train.checkpoints import Checkpoints
from occinv.train.signals import StopRequest
from occinv.train.step import TrainState, init_state
from occinv.train.writers import JsonlWriter, MultiWriter, TensorBoardWriter, Writer

log = logging.getLogger("occinv.train")

# Called after every step with (steps taken, steps in all, metrics if they were just logged).
Watch = Callable[[int, int, dict[str, float] | None], None]


class NonFinite(RuntimeError):
    """The loss or its gradient stopped being a number."""


@dataclasses.dataclass(frozen=True)
class Run(Assembly):
    """A config made real: everything that a run needs, checked, with nothing written yet."""

    loader: TrainLoader
    held_out: EvalLoader | None
    classes: tuple[str, ...]
    pretrained: Any  # parameters of an encoder to start from, or None
    furnish: Callable[[Any], Any] | None  # of the objective

    def every(self, interval: Duration | None) -> int:
        """An interval in steps, at least 1; no interval is the whole run."""
        if interval is None:
            return self.steps
        return max(1, interval.in_steps(self.experiment.train.batch_size, self.epoch))


class Outcome(NamedTuple):
    """How a call of `train` ended."""

    step: int
    steps: int
    metrics: dict[str, float]  # of the last evaluation, empty if there was none
    stopped_by: int | None  # the signal that asked to stop, if one did (perhaps at the last step)


def prepare(experiment: Experiment) -> Run:
    """Builds everything and checks it together. Raises UserError; writes nothing."""
    data, train = experiment.data, experiment.train
    source = open_source(data.source, train=True, data_dir=data.data_dir, classes=data.classes)
    held_out = open_held_out(experiment, source)
    everything = source
    source = select(everything, data, experiment.seed)
    # On few images an epoch is that of all, or else a few epochs of them would be no step at all.
    epoch = len(source if data.num_images is None else everything)
    mesh = parallel.make_mesh(fsdp=train.fsdp)
    parts = assemble(experiment, mesh, len(source.classes), epoch)
    objective = parts.objective
    share: dict[str, Any] = {
        "batch_size": train.batch_size,
        "image_size": data.image_size,
        "crop_scale": data.crop_scale,
        "flip": data.flip,
        "crops": objective.crops,
        "num_threads": data.num_threads,
        "max_corrupt": data.max_corrupt,
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
    }
    whole = {**share, "process_index": 0, "process_count": 1}
    training: dict[str, Any] = {"seed": experiment.seed, "scaled_decoding": data.scaled_decoding}

    def images() -> Iterator[np.ndarray]:
        """Those of one epoch, all of them on every process."""
        loader = TrainLoader(source, **training, **whole)
        return (batch.image for batch in loader.batches(0, max(1, epoch // train.batch_size)))

    pretrained = None
    if experiment.init_from is not None:
        before = files.load_run(experiment.init_from)
        check_same_encoder(before.objective.encoder, objective.encoder)
        pretrained = before.params["encoder"]
    jax.eval_shape(objective.init, jax.random.key(0), pretrained)  # does it fit?
    return Run(
        **vars(parts),
        loader=TrainLoader(source, rand_augment=data.rand_augment, **training, **share),
        held_out=None
        if held_out is None
        else EvalLoader(held_out, resize_ratio=data.resize_ratio, **share),
        classes=tuple(source.classes),
        pretrained=pretrained,
        furnish=objective.furnish(lambda workdir: files.load_run(workdir).params, images),
    )


def check_same_encoder(before: vit.ViT, now: vit.ViT) -> None:
    """Raises UserError where two encoders differ in what the shapes of parameters do not show."""
    for name in ("heads", "gelu", "pixel_range", "relative_position", "layer_scale"):
        theirs, ours = getattr(before, name), getattr(now, name)
        # A position that all blocks share may become one for each, and a start is no matter.
        learned = name in ("relative_position", "layer_scale")
        if theirs != ours and not (learned and None not in (theirs, ours)):
            raise UserError(
                f"init_from: that encoder has {name}={theirs}, here it is {ours}; give "
                f"--config.encoder.{name}={theirs}"
            )


def open_held_out(experiment: Experiment, source: Source) -> Source | None:
    """The images to evaluate on, or None if the data has no held-out part and none is named."""
    data = experiment.data
    spec = data.eval_source or data.source
    held_out = open_source(spec, train=False, data_dir=data.data_dir, classes=data.classes)
    if data.eval_source is None and held_out.name == source.name:
        return None
    if tuple(held_out.classes) != tuple(source.classes) and held_out.classes and source.classes:
        raise UserError(
            f"{held_out.name} has other classes ({len(held_out.classes)}) than {source.name} "
            f"({len(source.classes)})"
        )
    return held_out


def train(experiment: Experiment, workdir: Path, watch: Watch | None = None) -> Outcome:
    """Trains in `workdir`, from where it was if it has begun there, to the end or to a signal.

    Killed at any moment and called again, it ends with the very parameters of a run that was not.
    Raises UserError before anything is written, and NonFinite.
    """
    run = prepare(experiment)
    if jax.process_index() == 0:
        files.claim(workdir, experiment, run.classes)
        if isinstance(run.loader.source, Subset):
            files.record_images(workdir, run.loader.source.lines())
    if (workdir / files.RESULT).exists():
        finished = json.loads((workdir / files.RESULT).read_text())
        return Outcome(finished["step"], run.steps, finished["metrics"], None)
    with (
        StopRequest() as stop,
        Checkpoints(workdir / files.CHECKPOINTS, keep=experiment.train.keep) as checkpoints,
    ):
        state = start_or_resume(run, checkpoints)
        done = int(state.step)
        writer = make_writer(workdir, done)
        try:
            program = trace_step(run, state)
            summarize(run, state, writer, done)
            step, metrics = run_steps(run, state, program, checkpoints, writer, stop, watch)
        finally:
            writer.close()
    if step == run.steps and jax.process_index() == 0:
        files.write_json(workdir / files.RESULT, {"step": step, "metrics": metrics})
    return Outcome(step, run.steps, metrics, stop.requested and int(stop.requested))


def start_or_resume(run: Run, checkpoints: Checkpoints) -> TrainState:
    """The state of the newest good checkpoint, or of step 0, where it lies on the mesh."""

    def init(seed: jax.Array, encoder: Any) -> TrainState:
        return init_state(run.objective, run.optimizer, seed, encoder)

    seed = np.uint32(run.experiment.seed)
    shapes = jax.eval_shape(init, seed, run.pretrained)
    shardings = parallel.of_state(run.mesh, shapes)
    if checkpoints.latest() is None:
        state = jax.jit(init, out_shardings=shardings)(seed, run.pretrained)
        if run.furnish is None:
            return state
        furnished = run.furnish(state.state)
        return state.replace(state=jax.device_put(furnished, shardings.state))
    template = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings,
    )
    step, items = checkpoints.restore({"params": template.params, "rest": rest_of(template)})
    log.info("continuing after step %d of %d", step, run.steps)
    return TrainState(params=items["params"], **items["rest"])


def rest_of(state: TrainState) -> dict[str, Any]:
    """All but the parameters, an item of their own, so that a reader needs no optimizer."""
    fields = dataclasses.fields(state)
    return {f.name: getattr(state, f.name) for f in fields if f.name != "params"}


def run_steps(
    run: Run,
    state: TrainState,
    program: Any,
    checkpoints: Checkpoints,
    writer: Writer,
    stop: StopRequest,
    watch: Watch | None,
) -> tuple[int, dict[str, float]]:
    """The steps from `state` to the last, or to a stop: (steps taken, last evaluation)."""
    settings = run.experiment.train
    done = int(state.step)
    evaluate = make_evaluation(run)
    log_every, save_every = run.every(settings.log_every), run.every(settings.checkpoint_every)
    evaluate_every = run.every(settings.evaluate_every)
    take_step: Any = None if done == run.steps else program.lower().compile()
    batches = run.loader.batches(done, run.steps)
    recent: list[dict[str, jax.Array]] = []  # metrics of the steps since the last log
    metrics: dict[str, float] = {}
    step, saved = done, done
    clock = Clock()

    def save() -> None:
        nonlocal saved
        if saved != step:
            raise_if_not_finite(state, run, checkpoints)
            checkpoints.save(step, {"params": state.params, "rest": rest_of(state)}, {})
            saved = step

    while step < run.steps:
        with clock.waiting():
            batch = parallel.put_batch(run.mesh, next(batches))
        state, of_step = take_step(state, batch)
        step += 1
        clock.steps += 1
        recent.append(of_step)
        if len(recent) > 2:  # do not run ahead of the device: batches would pile up on it
            jax.block_until_ready(recent[-3])
        logged = None
        if step % log_every == 0 or step == run.steps:
            logged = _mean(recent)
            logged["learning_rate"] = float(run.schedule(step - 1))
            logged |= clock.rates(settings.batch_size)
            writer.write_scalars(step, logged)
            recent, clock = [], Clock()
            raise_if_not_finite(state, run, checkpoints)
        if watch is not None:
            watch(step, run.steps, logged)
        if step % evaluate_every == 0 or step == run.steps:
            metrics = evaluate(state)
            writer.write_scalars(step, {f"eval/{name}": value for name, value in metrics.items()})
            writer.write_images(step, pictures(run, state))
            clock = Clock()
        if step % save_every == 0 or step == run.steps:
            save()
        if stop.is_due(step):
            save()
            break
    if done == run.steps:  # killed between the last checkpoint and result.json
        metrics = evaluate(state)
    return step, metrics


class Clock:
    """Speed since it was made: of steps alone, without compiling or evaluating."""

    def __init__(self) -> None:
        self.steps = 0
        self._start = time.monotonic()
        self._waited = 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """What runs in this block is waiting for data."""
        asked = time.monotonic()
        yield
        self._waited += time.monotonic() - asked

    def rates(self, batch_size: int) -> dict[str, float]:
        """Images a second, and the share of the time that was spent waiting for data."""
        seconds = time.monotonic() - self._start
        return {
            "images_per_second": self.steps * batch_size / seconds,
            "data_wait_fraction": self._waited / seconds,
        }


def _mean(recent: list[dict[str, jax.Array]]) -> dict[str, float]:
    values = [parallel.fetch(of_step) for of_step in recent]
    return {name: float(np.mean([v[name] for v in values])) for name in values[0]}


def raise_if_not_finite(state: TrainState, run: Run, checkpoints: Checkpoints) -> None:
    """Raises NonFinite when more steps were skipped than `train.max_nonfinite` allows."""
    skipped, allowed = int(state.nonfinite), run.experiment.train.max_nonfinite
    if skipped > allowed:
        checkpoints.wait()  # the newest may still be on its way to the disk
        last = checkpoints.latest()
        kept = "no checkpoint was saved" if last is None else f"the last good checkpoint is {last}"
        raise NonFinite(
            f"loss or gradient not finite in {skipped} of the {int(state.step)} steps so far "
            f"(train.max_nonfinite={allowed}); the first was step {int(state.first_nonfinite)}; "
            f"{kept}"
        )


def make_evaluation(run: Run) -> Callable[[TrainState], dict[str, float]]:
    """A function from a state to the mean loss and metrics over the held-out images.

    Padding weighs nothing. An objective that compares the images of a batch would compare them with
    the padding, too, so it leaves the incomplete last batch out.
    """
    objective = run.objective.for_evaluation

    def sums_of(params: Any, state: Any, batch: Batch, number: jax.Array) -> dict[str, jax.Array]:
        params, state = objective.encoder.layout.ready((params, state))
        # The same masks each time: what changes between evaluations is the model.
        keys = image_rngs(jax.random.key(0), number, batch.label.shape[0])
        return objective.evaluate(params, state, batch, keys)

    compiled = jax.jit(sums_of, out_shardings=parallel.replicated(run.mesh))

    def evaluate(state: TrainState) -> dict[str, float]:
        if run.held_out is None:
            return {}
        totals: dict[str, Any] = {}
        size, images = run.experiment.train.batch_size, len(run.held_out.source)
        for number, batch in enumerate(run.held_out.batches()):
            if objective.couples_batch and (number + 1) * size > images:
                break
            batch = parallel.put_batch(run.mesh, batch)
            sums = compiled(state.params, state.state, batch, jnp.int32(number))
            for name, value in parallel.fetch(sums).items():
                totals[name] = totals.get(name, 0.0) + value.astype(np.float64)
        count = totals.pop("count", 0.0)
        means = {name: value / count for name, value in totals.items()}
        return objective.summarize(
            {name: float(mean) if mean.ndim == 0 else mean for name, mean in means.items()}
        )

    return evaluate


def pictures(run: Run, state: TrainState) -> dict[str, np.ndarray]:
    """What the objective shows of the first held-out images, float32 [8, H, W, 3] each."""
    if run.held_out is None or jax.process_count() > 1:
        return {}
    batch = jax.tree.map(lambda x: x[:8], run.held_out.batch(0))
    keys = image_rngs(jax.random.key(0), jnp.int32(0), batch.label.shape[0])
    shown = jax.jit(run.objective.pictures)(jax.device_get(state.params), batch, keys)
    return {name: np.asarray(images) for name, images in shown.items()}


def make_writer(workdir: Path, done: int) -> Writer:
    """The writer of process 0; the others write nothing."""
    if jax.process_index() != 0:
        return MultiWriter([])
    return MultiWriter(
        [
            JsonlWriter(workdir / files.METRICS, resume_step=done),
            TensorBoardWriter(workdir, resume_step=done),
        ]
    )


def summarize(run: Run, state: TrainState, writer: Writer, done: int) -> None:
    """Logs what is about to run: its parameters, arithmetic, data and devices."""
    sizes = {name: count_parameters(part) for name, part in state.params.items()}
    flops = model_flops(run, state)
    log.info(
        "%s: %s; %.3g GFLOP an image and step in matrix products; %s; steps %d to %d of %d images "
        "on %d %s device(s)",
        run.experiment.objective["name"],
        ", ".join(f"{name} {size / 1e6:.3g} M parameters" for name, size in sizes.items()),
        flops / 1e9,
        run.loader.source.name,
        done + 1,
        run.steps,
        run.experiment.train.batch_size,
        run.mesh.size,
        jax.default_backend(),
    )
    if done == 0:
        writer.write_scalars(0, {"parameters": sum(sizes.values()), "flops_per_image": flops})
