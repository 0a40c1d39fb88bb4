"""The training loop, from top to bottom.

Everything random in step n depends on the seed and on n alone, so a run can stop anywhere and go on from its
last checkpoint with the numbers it would have had. A time budget (`train.seconds`) is the exception: how many steps
it holds, and with them the learning rates, are the machine's.
"""

from __future__ import annotations

import contextlib
import math
import resource
import sys
import time
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from homojl.data.augment import augment, iterate_batches
from homojl.data.datasets import ImageDataset
from homojl.errors import CheckpointError, SolveError
from homojl.models import AbstractImplicitModel
from homojl.nn.parts import MovingPoint
from homojl.results.records import METRICS, Evaluation
from homojl.solution import EquilibriumSolution, Solution, Status
from homojl.training.checkpoint import (
    SCHEMA,
    Checkpoint,
    load_optimizer,
    optimizer_tensors,
    read_checkpoint,
    write_checkpoint,
)
from homojl.training.config import ExperimentConfig, OptimConfig, TrainConfig
from homojl.training.evaluation import evaluate, prepare
from homojl.training.experiment import (
    ModelForm,
    build_model,
    build_optimizer,
    initial_point,
    load_data,
    resolve_device,
    steps_per_epoch,
)
from homojl.training.optimizers import AbstractOptimizer
from homojl.training.progress import Progress
from homojl.training.ranks import ALONE, Ranks
from homojl.training.run import Run, checked_form, form_header, load_weights
from homojl.training.stopwatch import Stopwatch
from homojl.version import __version__

POINTS = 12  # lines of metrics that a time budget yields, evenly over its seconds
PHASES = ("data_seconds", "forward_seconds", "solve_seconds", "backward_seconds", "optimizer_seconds")
VALIDATION_SHARE = 0.1  # of training time, that validation may cost beside a time budget before the last line


@dataclass
class Totals:
    """Sums over the steps since the last line of metrics, or the numbers of one step."""

    steps: int = 0
    images: int = 0
    loss: float = 0.0
    correct: int = 0
    nfe: int = 0
    n_vjp: int = 0
    nfe_backward: int = 0
    accepted: int = 0
    rejected: int = 0
    failed: int = 0
    point_loss: float = 0.0
    point_updates: int = 0
    seconds: float = 0.0
    data_seconds: float = 0.0
    forward_seconds: float = 0.0
    solve_seconds: float = 0.0
    backward_seconds: float = 0.0
    optimizer_seconds: float = 0.0

    def note(self, solution: Solution | EquilibriumSolution) -> None:
        """What the solve of one step cost, forward and backward."""
        self.nfe = solution.stats.nfe
        self.n_vjp = solution.stats.n_vjp
        self.nfe_backward = solution.stats.nfe_backward
        self.accepted = solution.stats.n_accepted
        self.rejected = solution.stats.n_rejected
        self.solve_seconds = solution.stats.seconds
        self.failed = (solution.status is not Status.SUCCESS) + (solution.stats.unconverged_backward > 0)

    def add(self, step: Totals) -> None:
        """Add the numbers of a step."""
        for name, value in vars(step).items():
            setattr(self, name, getattr(self, name) + value)

    def numbers(self) -> dict[str, float]:
        """What follows from the sums, under the names of `METRICS`."""
        return {
            "train_loss": self.loss / self.images,
            "train_accuracy": self.correct / self.images,
            "nfe_forward": self.nfe / self.steps,
            "nfe_backward": self.n_vjp / self.steps,
            "nfe_recomputed": self.nfe_backward / self.steps,
            "accepted_steps": self.accepted / self.steps,
            "rejected_steps": self.rejected / self.steps,
            "failed_solves": self.failed,
            "images_per_second": self.images / self.seconds,
        }


@dataclass
class Position:
    """Where a run stands: what a checkpoint holds beside tensors."""

    step: int = 0  # completed steps in all
    lines: int = 0  # of metrics
    seconds: float = 0.0  # of training, validation and checkpoints not counted
    validations: int = 0
    validation_seconds: float = 0.0
    best_epoch: float = 0  # epochs completed at the best line
    best_score: float = 0.0  # validation accuracy there
    totals: Totals = field(default_factory=Totals)


def train(
    run: Run,
    *,
    data: ImageDataset | None = None,
    model: AbstractImplicitModel | None = None,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    ranks: Ranks = ALONE,
) -> bool:
    """Train a run from wherever it stands to its last epoch.

    Args:
        run: a new run, or one that was stopped or killed.
        data: the configured dataset where it is loaded already.
        model: the configured model where it is built already and untouched since; it is trained.
        progress: what to show; None: nothing.
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
        return _train(run, data, model, progress or Progress(), should_stop, ranks)


def _train(
    run: Run,
    data: ImageDataset | None,
    model: AbstractImplicitModel | None,
    progress: Progress,
    should_stop: Callable[[], bool],
    ranks: Ranks,
) -> bool:
    config = ranks.fitted(run.config)
    if config.train.threads is not None:
        torch.set_num_threads(config.train.threads)
    device = resolve_device(config.train.device)
    data = load_data(config) if data is None else data
    form = ModelForm.of(data)
    train_index, val_index = data.split(config.data.val_fraction, config.train.seed)
    batch_size = config.train.batch_size
    batches = steps_per_epoch(data, config)

    model = (build_model(config, form) if model is None else model).to(device)
    ranks.couple(model, batch_size)
    model.throw = False  # a failed solve is counted, and ends the run only if the loss is not finite
    point = initial_point(model)
    optimizer = build_optimizer(model, config.optim)
    found = ranks.from_main(lambda: read_checkpoint(run.last_checkpoint) if run.last_checkpoint.exists() else None)
    position = Position() if found is None else restore(run, found, model, optimizer, config)
    if ranks.is_main:
        run.keep_metrics(position.lines)
    checkpointed = time.monotonic()
    start_memory = peak_memory(device)

    while not is_complete(position, config.train, batches):
        model.train()
        epoch, done = divmod(position.step, batches)
        progress.start_epoch(epoch + 1, config.train, batches, done)
        order = iterate_batches(
            len(train_index), batch_size, seed=config.train.seed, epoch=epoch, first_batch=done, drop_last=True
        )
        for batch in order:
            started, watch, step = time.perf_counter(), Stopwatch(device), Totals(steps=1, images=batch_size)
            generator = seed_step(config.train.seed, position.step)
            index = train_index[batch]
            pixels = augment(
                data.x_train[index].to(device),
                pad=config.data.pad,
                flip=config.data.flip,
                generator=generator,
            )
            labels = data.y_train[index].to(device)

            lr = learning_rate(config.optim, *schedule_place(position, config.train, batches))
            optimizer.lr = lr
            # Each process takes its part of the batch, and as large a share in what are means over the batch.
            images, labels = prepare(ranks.part(pixels), form, model), ranks.part(labels)
            share = len(images) / batch_size
            step.data_seconds = watch.lap()
            if position.step % batches == 0:
                model.begin_epoch(prepare(pixels, form, model))
                ranks.share_buffers(model)
            logits, solution = model(images, return_solution=True)
            loss = cross_entropy(logits, labels) + model.regularization()
            if not math.isfinite(loss.item()):
                raise SolveError(
                    f"the loss is {loss.item()} at step {position.step + 1}"
                    + (f" after a failed solve: {solution.message}" if solution.message else "")
                    + "; lower optim.lr, or go on from the last checkpoint with --resume",
                    solution,
                )
            step.forward_seconds = watch.lap()
            optimizer.zero_grad()
            (share * loss).backward()
            ranks.sum_gradients(optimizer)
            step.backward_seconds = watch.lap()
            optimizer.step()
            model.project_()
            if point is not None and point.loss is not None:
                step.point_loss, step.point_updates = point.loss.item(), 1

            step.loss = loss.item() * len(images)
            step.correct = int((logits.argmax(dim=1) == labels).sum())
            step.note(solution)
            step.optimizer_seconds = watch.lap()
            step.seconds = time.perf_counter() - started
            ranks.combine(step, sums=("loss", "correct"))
            position.totals.add(step)
            position.seconds += step.seconds
            position.step += 1
            progress.step(progress_numbers(position.totals, device))
            progress.measured(position.step, step.numbers() | {"lr": lr})

            if line_is_due(position, config.train, batches):
                started = time.perf_counter()
                val = None
                if len(val_index) and validation_is_due(position, config.train, batches, len(val_index)):
                    val = evaluate(
                        model,
                        form,
                        data.x_train[val_index],
                        data.y_train[val_index],
                        batch_size=config.train.eval_batch_size,
                        split="val",
                        solver=config.solver,
                        checkpoint="",
                        ranks=ranks,
                    )
                val_seconds = ranks.largest(time.perf_counter() - started)
                if val is not None:
                    position.validations += 1
                    position.validation_seconds += val_seconds
                metrics = epoch_metrics(position, batches, lr, val, point, device, val_seconds, start_memory)
                metrics["peak_memory"] = ranks.largest(metrics["peak_memory"])
                # Among equals the later one, which has seen more; without a validation split the last.
                score = 0.0 if val is None else val.accuracy
                best = score >= position.best_score and (val is not None or len(val_index) == 0)
                if best:
                    position.best_epoch, position.best_score = metrics["epoch"], score
                position.lines += 1
                position.totals = Totals()
                if ranks.is_main:
                    # In this order a kill in between costs work, never consistency: the last checkpoint counts.
                    run.append_metrics(metrics)
                    if best:
                        save(run, "best", model, optimizer, position, form, config)
                    save(run, "last", model, optimizer, position, form, config)
                checkpointed = time.monotonic()
                progress.end_epoch(metrics)

            stop = bool(ranks.largest(should_stop()))
            late = time.monotonic() - checkpointed >= config.train.checkpoint_seconds
            if ranks.is_main and position.totals.steps and (stop or late):
                save(run, "last", model, optimizer, position, form, config)
                checkpointed = time.monotonic()
            if is_complete(position, config.train, batches):
                return True
            if stop:
                return False
    return True


def is_complete(position: Position, config: TrainConfig, batches: int) -> bool:
    """Whether the budget, of epochs or of seconds, is used up."""
    if config.seconds is not None:
        return position.seconds >= config.seconds
    return position.step >= config.epochs * batches


def line_is_due(position: Position, config: TrainConfig, batches: int) -> bool:
    """Whether the step just completed ends an epoch, or with a time budget one of its parts."""
    if config.seconds is None:
        return position.step % batches == 0
    part, before = config.seconds / POINTS, position.seconds - position.totals.seconds
    return is_complete(position, config, batches) or position.seconds // part > before // part


def validation_is_due(position: Position, config: TrainConfig, batches: int, images: int) -> bool:
    """Whether the line that is due has a validation: each after an epoch, and the last of a time budget.

    Earlier ones of a time budget only where all validation together stays within its share. What the first will cost
    is guessed: half of what as many images cost in training.
    """
    if config.seconds is None or is_complete(position, config, batches):
        return True
    if position.validations:
        cost = position.validation_seconds / position.validations
    else:
        cost = 0.5 * images * position.seconds / (position.step * config.batch_size)
    return position.validation_seconds + cost <= VALIDATION_SHARE * position.seconds


def schedule_place(position: Position, config: TrainConfig, batches: int) -> tuple[float, int, int]:
    """The step that the schedule has come to, how many it has in all, and how many in an epoch."""
    total = config.epochs * batches
    step = position.step if config.seconds is None else position.seconds / config.seconds * total
    return step, total, batches


def seed_step(seed: int, step: int) -> torch.Generator:
    """Seed PyTorch's global generators (dropout) for one step; returns a generator for its augmentation."""
    torch.manual_seed((seed << 32) + step)
    return torch.Generator().manual_seed((1 << 62) + (seed << 32) + step)


def learning_rate(config: OptimConfig, step: float, total_steps: int, steps_per_epoch: int) -> float:
    """The learning rate at a place in the schedule."""
    if config.schedule == "cosine":
        floor = min(config.min_lr, config.lr)
        return floor + (config.lr - floor) * (1 + math.cos(math.pi * step / total_steps)) / 2
    if config.schedule == "step":
        return config.lr * config.gamma ** bisect_right(config.milestones, step // steps_per_epoch)
    return config.lr


def epoch_metrics(
    position: Position,
    batches: int,
    lr: float,
    val: Evaluation | None,
    point: MovingPoint | None,
    device: torch.device,
    val_seconds: float,
    start_memory: float,
) -> dict[str, float]:
    """A line in metrics.jsonl, keys in the order of `METRICS`; NaN where there is no number."""
    epochs, part = divmod(position.step, batches)
    numbers = position.totals.numbers() | {
        **{name: getattr(position.totals, name) for name in PHASES},
        "epoch": epochs + part / batches if part else epochs,
        "step": position.step,
        "lr": lr,
        "val_loss": math.nan if val is None else val.loss,
        "val_accuracy": math.nan if val is None else val.accuracy,
        "initial_point_loss": position.totals.point_loss / max(position.totals.point_updates, 1),
        "initial_point_norm": 0.0 if point is None else point.value.detach().norm().item(),
        "nfe_val": math.nan if val is None else float(val.nfe.mean()),
        "seconds": position.totals.seconds + val_seconds,
        "peak_memory": peak_memory(device),
        "start_memory": start_memory,
        "validation_seconds": val_seconds,
    }
    return {name: numbers[name] for name in METRICS}


def progress_numbers(totals: Totals, device: torch.device) -> dict[str, str]:
    """What the bar shows."""
    return {
        "loss": f"{totals.loss / totals.images:.4f}",
        "acc": f"{100 * totals.correct / totals.images:.2f}%",
        "nfe": f"{totals.nfe / totals.steps:.1f}+{totals.n_vjp / totals.steps:.1f}",
        "img/s": f"{totals.images / totals.seconds:.0f}",
        "MiB": f"{peak_memory(device):.0f}",
    }


def peak_memory(device: torch.device) -> float:
    """Peak memory so far in MiB: allocated on a GPU, else resident in the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "linux":
        # Not ru_maxrss, which a process inherits from the one that started it.
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def save(
    run: Run,
    which: str,
    model: AbstractImplicitModel,
    optimizer: AbstractOptimizer,
    position: Position,
    form: ModelForm,
    config: ExperimentConfig,
) -> None:
    """Write checkpoint "best" or "last"."""
    tensors = {f"model.{name}": t for name, t in model.state_dict().items()}
    tensors.update(optimizer_tensors(optimizer, "optimizer"))
    header = {
        "homojl": __version__,
        "model": config.to_dict()["model"],
        "form": form_header(form),
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
        stood = header["position"]
        position = Position(**{**stood, "totals": Totals(**stood["totals"])})
        for part in (position, position.totals):
            for f in fields(part):
                value = getattr(part, f.name)
                if f.name != "totals" and not (type(value).__name__ in (f.type, "int") and 0 <= value < math.inf):
                    raise ValueError(f"{f.name} is {value!r}")
        return position
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        raise CheckpointError(f"{path} does not fit this run: {error}") from None
