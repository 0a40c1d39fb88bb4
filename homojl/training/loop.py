"""The training loop, from top to bottom: one for `homojl train` and `homojl.train`.

Everything random in step n depends on the seed and on n alone, so a run can stop anywhere and go on from its
last checkpoint with the numbers it would have had. A time budget (`train.seconds`) is the exception: how many steps
it holds, and with them the learning rates, are the machine's.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch.utils import _pytree as pytree

from homojl.data.datasets import ImageDataset
from homojl.errors import CheckpointError, DataError, SolveError
from homojl.models import AbstractImplicitModel, count_parameters
from homojl.nn.parts import MovingPoint
from homojl.results.records import METRICS
from homojl.training.callbacks import Callback, Start
from homojl.training.checkpoint import (
    SCHEMA,
    Checkpoint,
    load_optimizer,
    optimizer_tensors,
    read_checkpoint,
    write_checkpoint,
)
from homojl.training.config import ExperimentConfig
from homojl.training.criteria import Criteria, Validated
from homojl.training.experiment import (
    answered,
    build_model,
    build_optimizer,
    initial_point,
    load_data,
    placed,
    resolve_device,
    solve_as,
)
from homojl.training.measuring import Stopwatch, peak_memory
from homojl.training.optimizers import AbstractOptimizer
from homojl.training.position import (
    PHASES,
    Position,
    Totals,
    is_complete,
    learning_rate,
    line_is_due,
    schedule_place,
    torch_seed,
    validation_is_due,
)
from homojl.training.ranks import ALONE, Ranks
from homojl.training.run import Run
from homojl.training.solver import SolverConfig
from homojl.training.tasks import AbstractTask, ImageTask
from homojl.training.weights import checked_form, form_header, load_weights, start_from
from homojl.version import __version__

Tensor = torch.Tensor


def train_run(
    run: Run,
    *,
    data: ImageDataset | AbstractTask | None = None,
    model: AbstractImplicitModel | None = None,
    callbacks: Sequence[Callback] = (),
    should_stop: Callable[[], bool] = lambda: False,
    ranks: Ranks = ALONE,
) -> bool:
    """Train a run from wherever it stands to its last epoch.

    Args:
        run: a new run, or one that was stopped or killed.
        data: the configured dataset where it is loaded already, or what else is trained on.
        model: the configured model where it is built already and untouched since; it is trained.
        callbacks: what is told how it goes, in process 0.
        should_stop: asked after each step; when true in any process, a checkpoint is written and the loop ends.
        ranks: the processes that train the run together, each in its own call.

    Returns:
        Whether the run is complete.

    Raises:
        ConfigError, DataError, CheckpointError: before work starts.
        BusyError: another process trains this run.
        CheckpointError: when what was learned cannot be written, such as on a full disk; the last checkpoint stays.
        SolveError: if the loss is no longer finite; the last checkpoint stays.
    """
    with run.locked() if ranks.is_main else contextlib.nullcontext():
        config = ranks.fitted(run.config)
        if config.train.threads is not None:
            torch.set_num_threads(config.train.threads)
        if isinstance(data, AbstractTask):
            task = data
        else:
            task = ImageTask(config, load_data(config) if data is None else data, Criteria.of(config.train))
        if model is None:
            assert task.form.images, "what is not images comes with its model"
            model = build_model(config, task.form)
        told = callbacks if ranks.is_main else ()
        return _Loop(run, config, task, model, told, should_stop, ranks).train()


class _Loop:
    """The state of one call of `train_run`."""

    def __init__(
        self,
        run: Run,
        config: ExperimentConfig,
        task: AbstractTask,
        model: AbstractImplicitModel,
        callbacks: Sequence[Callback],
        should_stop: Callable[[], bool],
        ranks: Ranks,
    ) -> None:
        self.run, self.config, self.task, self.ranks = run, config, task, ranks
        self.callbacks, self.should_stop = callbacks, should_stop
        self.device = resolve_device(config.train.device)
        self.model = placed(model, config)
        ranks.couple(model, config.train.batch_size)
        model.throw = False  # a failed solve is counted, and ends the run only if the loss is not finite
        self.point = initial_point(model)
        self.optimizer = build_optimizer(model, config.optim)
        self.position = self._found()
        self.checkpointed = time.monotonic()
        self.start_memory = peak_memory(self.device)

    def _found(self) -> Position:
        """The position of the last checkpoint, whose state is put back; without one, the start."""
        path, start = self.run.last_checkpoint, self.run.start_checkpoint
        found = self.ranks.from_main(lambda: read_checkpoint(path) if path.exists() else None)
        if found is not None:
            position = restore(self.run, found, self.model, self.optimizer, self.config)
        else:
            position = Position()
            if self.config.train.start is not None and self.ranks.is_main and not start.exists():
                self.run.started_from(self.model)
            begun = self.ranks.from_main(lambda: read_checkpoint(start) if start.exists() else None)
            if begun is not None:
                start_from(self.model, begun[0], start)
        if self.ranks.is_main:
            self.run.metrics_file.keep(position.lines)
        return position

    @property
    def complete(self) -> bool:
        """Whether the budget is used up."""
        return is_complete(self.position, self.config.train, self.task.steps)

    def train(self) -> bool:
        """Take steps until the budget is used up, or a callback or a signal ends it; see `train_run`."""
        told = []
        complete = False
        try:
            for callback in self.callbacks:
                told.append(callback)
                callback.started(
                    Start(self.run.path, self.config, self.task.steps, self.position.step, self.run.metrics)
                )
            complete = self._steps()
        finally:
            self._solve_as(self.config.solver)
            for callback in told:
                callback.ended(complete)
        return complete

    def _steps(self) -> bool:
        position, budget, steps = self.position, self.config.train, self.task.steps
        self._solve_as(self.config.training_solver)
        while not self.complete:
            self.model.train()
            epoch, done = divmod(position.step, steps)
            batches = self.task.batches(self.model, epoch, done)
            for _ in range(done, steps):
                numbers = self._step(batches)
                over = self._tell("step", position.step, numbers)
                if over or line_is_due(position, budget, steps):
                    over = self._line(numbers["lr"]) or over
                stop = bool(self.ranks.largest(self.should_stop()))
                late = time.monotonic() - self.checkpointed >= budget.checkpoint_seconds
                if position.totals.steps and (stop or late):
                    self._save("last")
                if over or self.complete:
                    return True
                if stop:
                    return False
        return True

    def _solve_as(self, solver: SolverConfig) -> None:
        """Solve with these settings from here on, where training has some of its own."""
        if self.config.solver.training is not None:
            solve_as(self.model, solver)

    def _step(self, batches: Iterator[tuple[Any, Tensor]]) -> dict[str, float]:
        """One step of the optimiser on the next batch, and what it measured."""
        position, config, ranks, model = self.position, self.config, self.ranks, self.model
        started, watch = time.perf_counter(), Stopwatch(self.device)
        torch.manual_seed(torch_seed(config.train.seed, position.step))
        whole, targets = self._next(batches)
        rows = len(targets)
        step = Totals(steps=1, images=rows)
        lr = learning_rate(config.optim, *schedule_place(position, config.train, self.task.steps))
        self.optimizer.lr = lr
        # Each process takes its part of the batch, and as large a share in what are means over the batch.
        inputs, targets = pytree.tree_map(lambda x: ranks.part(x) if isinstance(x, Tensor) else x, (whole, targets))
        ranks.place(model, rows)
        share = len(targets) / rows
        step.data_seconds = watch.lap()
        if position.step % self.task.steps == 0:
            model.begin_epoch(whole)
            ranks.share_buffers(model)
        ranks.begin_step(model)
        outputs, solution, loss = self._forward(inputs, targets)
        step.forward_seconds = watch.lap()
        self.optimizer.zero_grad()
        (share * loss).backward()
        ranks.sum_gradients(self.optimizer)
        step.backward_seconds = watch.lap()
        self.optimizer.step()
        model.project_()
        if self.point is not None and self.point.loss is not None:
            step.point_loss, step.point_updates = self.point.loss.item(), 1
        step.loss = loss.item() * len(targets)
        with torch.no_grad():
            step.correct = self.task.criteria.correct(outputs, targets)
            step.metric = self.task.criteria.measured(outputs, targets) * len(targets)
        step.note(solution)
        step.optimizer_seconds = watch.lap()
        step.seconds = time.perf_counter() - started
        ranks.combine(step, sums=("loss", "correct", "metric"))
        position.totals.add(step)
        position.seconds += step.seconds
        position.step += 1
        return step.numbers(self.task.criteria.measures) | {"lr": lr}

    def _next(self, batches: Iterator[tuple[Any, Tensor]]) -> tuple[Any, Tensor]:
        """The next batch.

        Raises:
            DataError: the epoch has fewer than it was to have.
        """
        batch = next(batches, None)
        if batch is None:
            epoch, found = divmod(self.position.step, self.task.steps)
            raise DataError(f"epoch {epoch + 1} of the data ended after {found} batches, expected {self.task.steps}")
        return batch

    def _forward(self, inputs: Any, targets: Tensor) -> tuple[Any, Any, Tensor]:
        """Outputs, solution and loss.

        Raises:
            SolveError: the loss is not finite.
        """
        outputs, solution = answered(self.model, inputs, self.config.train.precision)
        loss = self.task.criteria.checked_loss(outputs, targets) + self.model.regularization()
        if not math.isfinite(loss.item()):
            raise SolveError(
                f"the loss is {loss.item()} at step {self.position.step + 1}"
                + (f" after a failed solve: {solution.message}" if solution.message else "")
                + "; lower optim.lr, or go on from the last checkpoint with --resume",
                solution,
            )
        return outputs, solution, loss

    def _line(self, lr: float) -> bool:
        """Validate where it is time, write a line of metrics and the checkpoints; whether a callback ends training."""
        position, task, ranks = self.position, self.task, self.ranks
        started, val = time.perf_counter(), None
        samples = task.validation_samples
        if samples and validation_is_due(position, self.config.train, task.steps, samples):
            self._solve_as(self.config.solver)
            val = task.validate(self.model, ranks)
            self._solve_as(self.config.training_solver)
        val_seconds = ranks.largest(time.perf_counter() - started)
        if val is not None:
            position.validations += 1
            position.validation_seconds += val_seconds
        metrics = self._metrics(lr, val or Validated(), val_seconds)
        score = None if val is None else task.criteria.score(val.loss, val.accuracy, val.metric)
        best = position.judge(metrics["epoch"], score, validates=samples > 0)
        position.lines += 1
        position.totals = Totals()
        if ranks.is_main:
            # In this order a kill in between costs work, never consistency: the last checkpoint counts.
            self.run.metrics_file.append(metrics)
            if best:
                self._save("best")
        self._save("last")
        return self._tell("line", metrics, best)

    def _metrics(self, lr: float, val: Validated, val_seconds: float) -> dict[str, float]:
        """A line in metrics.jsonl, keys in the order of `METRICS`; NaN where there is no number."""
        position, steps = self.position, self.task.steps
        totals = position.totals
        epochs, part = divmod(position.step, steps)
        numbers = totals.numbers(self.task.criteria.measures) | {
            **{name: getattr(totals, name) for name in PHASES},
            "epoch": epochs + part / steps if part else epochs,
            "step": position.step,
            "lr": lr,
            "val_loss": val.loss,
            "val_accuracy": val.accuracy,
            "val_metric": val.metric,
            "initial_point_loss": totals.point_loss / max(totals.point_updates, 1),
            "initial_point_norm": 0.0 if self.point is None else self.point.value.norm().item(),
            "nfe_val": val.nfe,
            "seconds": totals.seconds + val_seconds,
            "peak_memory": self.ranks.largest(peak_memory(self.device)),
            "start_memory": self.start_memory,
            "validation_seconds": val_seconds,
        }
        return {name: numbers[name] for name in METRICS}

    def _tell(self, what: str, *words: Any) -> bool:
        """Tell the callbacks; whether one of them ends training, in every process alike."""
        answers = [getattr(callback, what)(*words) for callback in self.callbacks]
        return bool(self.ranks.largest(True in answers))

    def _save(self, which: str) -> None:
        if self.ranks.is_main:
            save(self.run, which, self.model, self.optimizer, self.position, self.task, self.config)
        self.checkpointed = time.monotonic()


def save(
    run: Run,
    which: str,
    model: AbstractImplicitModel,
    optimizer: AbstractOptimizer,
    position: Position,
    task: AbstractTask,
    config: ExperimentConfig,
) -> None:
    """Write checkpoint "best" or "last"."""
    tensors = {f"model.{name}": t for name, t in model.state_dict().items()}
    tensors.update(optimizer_tensors(optimizer, "optimizer"))
    point = next((name for name, m in model.named_modules() if isinstance(m, MovingPoint)), None)
    header = {
        "homojl": __version__,
        "model": config.to_dict()["model"],
        "form": form_header(task.form),
        "class_names": list(task.class_names),
        "parameters": count_parameters(model),
        "initial_point": None if point is None else f"model.{point}.value",
        "position": asdict(position),
    }
    write_checkpoint(run.best_checkpoint if which == "best" else run.last_checkpoint, tensors, header)


def restore(
    run: Run,
    checkpoint: Checkpoint,
    model: AbstractImplicitModel,
    optimizer: AbstractOptimizer,
    config: ExperimentConfig,
) -> Position:
    """Put the last checkpoint's state into the model and the optimiser, and return where it stood."""
    path, (tensors, header) = run.last_checkpoint, checkpoint
    if header["schema"] != SCHEMA:
        raise CheckpointError(
            f"{path} has checkpoint schema {header['schema']}, of an earlier homojl; its weights are still read, but "
            f"training goes on from schema {SCHEMA} alone: train a new run"
        )
    checked_form(path, header, config)
    load_weights(model, tensors, path)
    try:
        load_optimizer(optimizer, "optimizer", tensors)
        return Position.stored(header["position"])
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        raise CheckpointError(f"{path} does not fit this run: {error}") from None
