"""A whole training run, from top to bottom: prepare, start or resume, step, finish.

prepare   check the config against the machine and the data; nothing is written
resume    restore the newest good checkpoint, or make a fresh state (from a pretrained encoder)
step      batch -> step, and at intervals: log, evaluate, save
finish    the last evaluation and checkpoint, and result.json
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from clu import parameter_overview

from occinv import parallel
from occinv.data.identity import identify
from occinv.schema import Experiment, UserError
from occinv.train import workdir as files
from occinv.train.agree import agree, data_facts, on_first_process, software
from occinv.train.checkpoints import Checkpoints
from occinv.train.clock import Clock
from occinv.train.data_record import check_data, write_data
from occinv.train.disk import RunFailed
from occinv.train.evaluation import make_evaluation, pictures
from occinv.train.file_writer import file_writer
from occinv.train.flops import model_flops
from occinv.train.lock import Lock, lock_workdir
from occinv.train.log_window import LogWindow
from occinv.train.manifest import RunIdentity
from occinv.train.monitors import at_log
from occinv.train.prepare import Run, prepare
from occinv.train.profiler import Profiler
from occinv.train.provenance import record_start
from occinv.train.signals import StopRequest
from occinv.train.step import (
    TrainState,
    as_items,
    initializer,
    join_state,
    split_state,
    trace_step,
)
from occinv.train.wandb_writer import WandbWriter
from occinv.train.writers import MultiWriter, Writer

if TYPE_CHECKING:
    from occinv.train.evals import Evals

log = logging.getLogger("occinv.train")

# Called after every step with (steps taken, steps in all, metrics if they were just logged).
Watch = Callable[[int, int, dict[str, float] | None], None]


class NonFinite(RunFailed):
    """The loss or its gradient is not finite."""


class Outcome(NamedTuple):
    """The end of a call of `train`.

    Attributes:
      step, steps: The steps taken, and the length of the run.
      metrics: The last evaluation, empty if there was none.
      stopped_by: The signal that asked to stop, if any (perhaps at the last step).
    """

    step: int
    steps: int
    metrics: dict[str, float]
    stopped_by: int | None


def train(
    experiment: Experiment,
    workdir: Path,
    watch: Watch | None = None,
    accept_changed_data: bool = False,
) -> Outcome:
    """Train in `workdir`, from the newest checkpoint there, until the end or a signal.

    A run that was killed at any moment and restarted gives exactly the parameters of an
    uninterrupted run.

    Args:
      experiment: The config.
      workdir: The folder of the run.
      watch: Called after every step.
      accept_changed_data: Go on if the data differs from that of the run in `workdir`.

    Raises:
      UserError: The config or the data is wrong, differs between processes, or another process
        uses the workdir; nothing is written.
      NonFinite: More steps than allowed had a loss or gradient that is not finite.
      RunFailed: The workdir was deleted, images or an evaluator fail after the start, or in a
        bucket, another start took the workdir over.
    """
    run = prepare_alike(experiment)
    evals = make_evals(run, workdir)
    on_first_process(lambda: files.check_free(workdir, experiment, run.classes))
    otherwise = "Wait until it ends, or use another --workdir."
    with lock_workdir(workdir, otherwise, trains=True) as lock:
        identity = on_first_process(lambda: claim(run, workdir, accept_changed_data))
        if (finished := on_first_process(lambda: finished_result(workdir))) is not None:
            return Outcome(finished["step"], run.assembly.steps, finished["metrics"], None)
        return train_claimed(run, workdir, identity and RunIdentity(*identity), lock, evals, watch)


def prepare_alike(experiment: Experiment) -> Run:
    """Prepare the run, and check that every process has the same config, software and data."""
    if jax.process_count() == 1:
        return prepare(experiment)
    config = files.as_json(experiment)
    for name in ("data_dir", "num_threads", "num_workers"):  # a machine may have its own
        config["data"].pop(name)
    agree({"config": config, **software()})
    try:
        run, mistake = prepare(experiment), None
    except UserError as error:
        run, mistake = None, str(error)
    agree({"mistake": mistake})
    if run is None:
        raise UserError(mistake)
    validation = None if run.validation is None else run.validation.source
    agree({"training": data_facts(run.loader.source), "validation": data_facts(validation)})
    return run


def claim(run: Run, workdir: Path, accept_changed_data: bool) -> RunIdentity | None:
    """Write config and data to the workdir, or check that they are those that are there."""
    data = check_data(workdir, run.sources, accept_changed_data)
    identity = files.claim(workdir, run.assembly.experiment, run.classes)
    if data is not None:
        write_data(workdir, run.sources, data)
    return identity


def finished_result(workdir: Path) -> dict[str, Any] | None:
    """Return the result of a finished run; None if there is none that can be believed."""
    try:
        return files.read_result(workdir)
    except UserError as error:
        log.warning("%s The run goes on from its newest checkpoint.", error)
        return None


def train_claimed(
    run: Run,
    workdir: Path,
    identity: RunIdentity | None,
    lock: Lock,
    evals: Evals | None,
    watch: Watch | None,
) -> Outcome:
    """Train in a workdir that is locked and holds the config."""
    steps, settings = run.assembly.steps, run.assembly.experiment.train
    folder = workdir / files.CHECKPOINTS
    record_start(workdir)
    with (
        StopRequest() as stop,
        Checkpoints(folder, keep=settings.keep, run=identity) as checkpoints,
        Profiler(workdir / files.PROFILE, settings.profile) as profiler,
    ):
        state = start_or_resume(run, checkpoints)
        checkpoints.prune()
        done = int(state.step)
        writer = make_writer(workdir, done, run.assembly.experiment)
        try:
            split = functools.partial(split_state, run.assembly)
            program = trace_step(run.assembly, jax.eval_shape(split, state))
            describe(run, state, program, writer, done)
            state = split(state)
            step, metrics = run_steps(
                run, state, program, checkpoints, writer, stop, watch, evals, profiler, lock
            )
        finally:
            writer.close()
    if not math.isfinite(metrics.get("loss", 0.0)):
        raise NonFinite(
            f"the validation loss is {metrics['loss']} after step {step}; the checkpoint of this "
            "step is kept. Use a smaller optimizer.base_lr, or train.precision=float32"
        )
    if step == steps and jax.process_index() == 0:
        lock.check()
        result: dict[str, Any] = {"step": step, "metrics": metrics}
        if identity is not None:
            result["run"] = identity.run
        if run.validation is not None:
            images = identify(run.validation.source, run.loader.source, is_own=True)
            result["images"] = dataclasses.asdict(images)
        files.write_json(workdir / files.RESULT, result)
    return Outcome(step, steps, metrics, stop.requested and int(stop.requested))


def make_evals(run: Run, workdir: Path) -> Evals | None:
    """Return the evaluators of the run, if it has any."""
    if not run.assembly.experiment.evals:
        return None
    from occinv.train.evals import Evals  # here, because most runs do without evaluators

    return Evals(run, workdir)


def start_or_resume(run: Run, checkpoints: Checkpoints) -> TrainState:
    """Return the state of the newest good checkpoint, or of step 0, sharded over the mesh."""
    assembly = run.assembly
    init = initializer(assembly.objective, assembly.optimizer, assembly.mesh)
    seed = np.uint32(assembly.experiment.seed)
    shapes = jax.eval_shape(init, seed, run.pretrained)
    shardings = parallel.of_state(assembly.mesh, shapes)
    if checkpoints.latest() is None and run.start is not None:
        return jax.device_put(run.start, shardings)
    if checkpoints.latest() is None:
        state = init(seed, run.pretrained)
        loaded = {name: obtain() for name, obtain in run.obtain.items()}
        objective_state = {**state.objective_state, **loaded}
        placed = jax.device_put(objective_state, shardings.objective_state)
        return dataclasses.replace(state, objective_state=placed)
    template = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        shardings,
    )
    step, items = checkpoints.restore(as_items(template))
    log.info("continuing after step %d of %d", step, assembly.steps)
    return TrainState(params=items["params"], **items["rest"])


def run_steps(
    run: Run,
    state: TrainState,
    program: Any,
    checkpoints: Checkpoints,
    writer: Writer,
    stop: StopRequest,
    watch: Watch | None,
    evals: Evals | None,
    profiler: Profiler,
    lock: Lock,
) -> tuple[int, dict[str, float]]:
    """Step from `state` to the end or to a stop; return the steps taken and the last evaluation."""
    assembly = run.assembly
    settings, steps = assembly.experiment.train, assembly.steps
    done = int(state.step)
    evaluate = make_evaluation(run)
    log_every, save_every = run.every(settings.log_every), run.every(settings.checkpoint_every)
    evaluate_every = run.every(settings.evaluate_every)
    take_step: Any = None if done == steps else program.lower().compile()
    window, clock = LogWindow(checkpoints.notes(done).get("window")), Clock()
    metrics: dict[str, float] = {}
    step, saved = done, done

    def save() -> None:
        nonlocal saved
        if saved != step:
            raise_if_not_finite(run, state, checkpoints)
            writer.flush()  # what a checkpoint follows must not be lost with the process
            lock.check()
            checkpoints.save(
                step, as_items(join_state(assembly, state)), {"window": window.to_json()}
            )
            saved = step

    with contextlib.closing(run.loader.batches(done, steps)) as batches:
        while step < steps:
            with profiler.step(step + 1):
                with clock.waiting(), saving(save):
                    batch = parallel.put_batch(assembly.mesh, next(batches))
                state, of_step = take_step(state, batch)
            step += 1
            clock.steps += 1
            clock.exclude(profiler.end_step(step, of_step))
            window.add(of_step)
            logged = None
            if step % log_every == 0 or step == steps:
                rate = {"learning_rate": float(assembly.schedule(step - 1))}
                logged = window.means() | rate | clock.rates(settings.batch_size)
                logged |= at_log(settings, logged, assembly.objective, state.params, batch)
                writer.write_scalars(step, logged)
                warn_of_waiting(logged, (step - done) / log_every, run.loader.spec.num_workers)
                window, clock = LogWindow(), Clock()
                lock.check()
                raise_if_not_finite(run, state, checkpoints)
            if watch is not None:
                watch(step, steps, logged)
            if step % evaluate_every == 0 or step == steps:
                with saving(save):
                    metrics = evaluate(state)
                writer.write_scalars(
                    step, {f"eval/{name}": value for name, value in metrics.items()}
                )
                writer.write_images(step, pictures(run, state))
                clock = Clock()
            with saving(save, is_shared=True):
                if evals is not None and evals.write(state, step, writer):
                    clock = Clock()
            if step % save_every == 0 or step == steps:
                save()
            if stop.is_due(step):
                save()
                break
    if done == steps:  # the run was killed after its last checkpoint, before result.json
        with saving(save):
            metrics = evaluate(state)
            if evals is not None:
                evals.write(state, step, Writer())  # their numbers are in the log
    return step, metrics


def warn_of_waiting(logged: dict[str, float], intervals: float, workers: int) -> None:
    """Warn once if a GPU or TPU waits for images half of the time, after the first log interval."""
    waited = logged["data_wait_fraction"]
    if 1 < intervals <= 2 and waited > 0.5 and jax.default_backend() != "cpu":
        log.warning(
            "the device waits for images %.0f %% of the time. Raise data.num_workers (now %d), the "
            "number of processes that read them; this machine has %d cores",
            100 * waited,
            workers,
            os.cpu_count(),
        )


@contextlib.contextmanager
def saving(save: Callable[[], None], *, is_shared: bool = False) -> Iterator[None]:
    """Save before an error ends the run, so that it costs no step.

    A UserError becomes RunFailed, because the run has written its workdir.

    Args:
      save: Saves a checkpoint, together with all processes.
      is_shared: Whether every process has this error. A process cannot save alone.
    """
    try:
        yield
    except Exception as error:
        if is_shared or jax.process_count() == 1:
            save()
        if isinstance(error, UserError):
            text = str(error).rstrip(".")
            raise RunFailed(f"{text}. Run the same command to continue.") from error
        raise


def raise_if_not_finite(run: Run, state: TrainState, checkpoints: Checkpoints) -> None:
    """Raise NonFinite if more steps were skipped than `train.max_nonfinite` allows."""
    skipped, allowed = int(state.nonfinite), run.assembly.experiment.train.max_nonfinite
    if skipped > allowed:
        checkpoints.wait()  # the newest may not be on disk yet
        last = checkpoints.latest()
        kept = "no checkpoint was saved" if last is None else f"the last good checkpoint is {last}"
        raise NonFinite(
            f"loss or gradient not finite in {skipped} of {int(state.step)} steps so far "
            f"(train.max_nonfinite={allowed}); the first was step {int(state.first_nonfinite)}; "
            f"{kept}"
        )


def make_writer(workdir: Path, done: int, experiment: Experiment) -> Writer:
    """Return the writer of process 0; the other processes write nothing."""
    if jax.process_index() != 0:
        return Writer()
    last = done or -1  # a run that starts again writes its first line again
    writers: list[Writer] = [file_writer(workdir, last)]
    if experiment.train.wandb is not None:
        writers.append(WandbWriter(workdir, experiment.train.wandb, files.as_json(experiment)))
    return MultiWriter(writers)


def describe(run: Run, state: TrainState, program: Any, writer: Writer, done: int) -> None:
    """Log parameter counts, FLOPs, data and devices; write config and parameters to TensorBoard."""
    assembly = run.assembly
    experiment = assembly.experiment
    sizes = {name: parameter_overview.count_parameters(part) for name, part in state.params.items()}
    flops = model_flops(assembly, state, program)
    log.info(
        "%s: %s; %.3g GFLOP an image and step in matrix products; %s; steps %d to %d of %d images "
        "on %d %s device(s); compiling",
        experiment.objective["name"],
        ", ".join(f"{name} {size / 1e6:.3g} M parameters" for name, size in sizes.items()),
        flops / 1e9,
        run.loader.source.name,
        done + 1,
        assembly.steps,
        experiment.train.batch_size,
        assembly.mesh.size,
        jax.default_backend(),
    )
    if run.validation is None:
        log.warning(
            "%s has no validation images, so no validation loss or accuracy is measured; name "
            "some by data.eval_source",
            run.loader.source.name,
        )
    if done == 0:
        writer.write_scalars(0, {"parameters": sum(sizes.values()), "flops_per_image": flops})
        overview = parameter_overview.get_parameter_overview(state.params, include_stats=False)
        config = json.dumps(files.as_json(experiment), indent=1)
        texts = {"config": config, "parameters": overview}
        writer.write_texts(0, {name: f"```\n{text}\n```" for name, text in texts.items()})
