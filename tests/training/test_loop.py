"""Training: learns, repeats, resumes after any kill, and ends cleanly."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
import types

import pytest
import torch

from homojl.errors import CheckpointError, ConfigError, SolveError
from homojl.results.records import METRICS
from homojl.training import checkpoint, loop, measuring, position
from homojl.training.callbacks import Callback
from homojl.training.checkpoint import read_checkpoint, write_checkpoint
from homojl.training.config import ExperimentConfig, OptimConfig, merge
from homojl.training.loop import train_run
from homojl.training.metrics_file import MetricsFile
from homojl.training.position import POINTS, learning_rate
from homojl.training.run import Run, load_run
from tests import warm

pytestmark = pytest.mark.slow

REPEATABLE = [name for name, metric in METRICS.items() if metric.repeatable]


def repeatable(run: Run) -> list[tuple]:
    """Of each line; None where nothing was measured, since NaN equals nothing."""
    return [tuple(None if math.isnan(m[name]) else m[name] for name in REPEATABLE) for m in run.metrics]


def assert_same_end(a: Run, b: Run) -> None:
    """Bit-identical parameters, optimiser state, position and metrics."""
    assert repeatable(a) == repeatable(b)
    for path in ("last_checkpoint", "best_checkpoint"):
        tensors_a, header_a = read_checkpoint(getattr(a, path))
        tensors_b, header_b = read_checkpoint(getattr(b, path))
        assert tensors_a.keys() == tensors_b.keys()
        for name in tensors_a:
            assert torch.equal(tensors_a[name], tensors_b[name]), name
        for header in (header_a, header_b):
            for name in ("seconds", "validation_seconds"):
                header["position"].pop(name)
        assert header_a["position"] == header_b["position"]


def changed(config: ExperimentConfig, **sections) -> ExperimentConfig:
    return ExperimentConfig.from_dict(merge(config.to_dict(), sections))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One undisturbed run that others are compared with."""
    from tests.training.conftest import TINY

    run = Run.create(tmp_path_factory.mktemp("runs") / "straight", ExperimentConfig.from_dict(TINY))
    assert train_run(run) is True
    return run


def test_a_run_learns_and_records(finished):
    metrics = finished.metrics
    assert [m["epoch"] for m in metrics] == [1, 2, 3]
    assert metrics[-1]["train_loss"] < metrics[0]["train_loss"] - 0.1
    assert metrics[-1]["val_accuracy"] > 0.25  # chance is 0.1
    for m in metrics:
        assert list(m) == list(METRICS)
        assert all(math.isfinite(v) != name.endswith("_metric") for name, v in m.items())
        assert m["nfe_backward"] == pytest.approx(3 * m["accepted_steps"])  # bosh3, checkpointed
        assert m["failed_solves"] == 0
        assert m["peak_memory"] >= m["start_memory"] > 10
        phases = [m[f"{name}_seconds"] for name in ("data", "forward", "backward", "optimizer")]
        assert min(phases) > 0
        training = m["step"] / m["epoch"] * 64 / m["images_per_second"]
        assert m["seconds"] == pytest.approx(training + m["validation_seconds"])
        assert sum(phases) <= training
        assert m["solve_seconds"] < m["forward_seconds"]
    assert metrics[-1]["initial_point_norm"] > 0
    assert metrics[-1]["lr"] < metrics[0]["lr"] <= 2e-2
    assert sorted(p.name for p in finished.path.iterdir()) == [
        "checkpoints", "config.toml", "environment.json", "metrics.jsonl"
    ]  # fmt: skip
    assert finished.environment["packages"]["torch"] == torch.__version__


def test_the_same_seed_repeats_and_another_does_not(finished, tiny, tmp_path):
    again = Run.create(tmp_path / "again", tiny)
    train_run(again)
    assert_same_end(finished, again)
    other = Run.create(tmp_path / "other", changed(tiny, train={"seed": 1}))
    train_run(other)
    assert repeatable(other) != repeatable(finished)


def test_stopping_after_any_step_and_going_on_changes_nothing(finished, tiny, tmp_path):
    run = Run.create(tmp_path / "stopped", tiny)
    rng, stops = random.Random(5), 0
    while not train_run(run, should_stop=lambda: rng.random() < 0.2):
        stops += 1
    assert stops > 2
    assert_same_end(finished, run)


class KilledError(Exception):
    pass


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("where", "name", "call"), [(MetricsFile, "append", 2), (loop, "save", 3), (loop, "save", 4)])
def test_dying_around_the_writes_that_end_an_epoch_changes_nothing(
    finished, tiny, tmp_path, monkeypatch, where, name, call, when
):
    run, original, calls = Run.create(tmp_path / "r", tiny), getattr(where, name), []

    def dying(*args):
        calls.append(1)
        if when == "after" or len(calls) != call:
            original(*args)
        if len(calls) == call:
            raise KilledError

    monkeypatch.setattr(where, name, dying)
    with pytest.raises(KilledError):
        train_run(run)
    monkeypatch.undo()
    assert train_run(run)
    assert_same_end(finished, run)


def test_sigkill_at_random_moments(finished, tiny, tmp_path):
    """The whole process dies, several times; what is left goes on to the very same end."""
    config = changed(tiny, train={"checkpoint_seconds": 0.0})
    run = Run.create(tmp_path / "killed", config)
    code = f"from homojl.training import load_run, train_run; assert train_run(load_run({str(run.path)!r}))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    rng, kills = random.Random(17), 0
    while True:
        process = subprocess.Popen([warm.python(), "-c", code], env=environment, stderr=subprocess.PIPE, text=True)
        if kills < 5:
            # Wait until this process has made a step of its own, then strike within the next few steps.
            before = run.last_checkpoint.stat().st_mtime_ns if run.last_checkpoint.exists() else 0
            while process.poll() is None:
                if run.last_checkpoint.exists() and run.last_checkpoint.stat().st_mtime_ns > before:
                    time.sleep(rng.uniform(0.0, 0.04))
                    process.send_signal(signal.SIGKILL)
                    break
                time.sleep(0.002)
        _, errors = process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, errors
        kills += 1
    assert kills >= 3
    assert_same_end(finished, run)


def test_a_half_written_metrics_line_is_dropped(finished, tiny, tmp_path):
    run = Run.create(tmp_path / "half", tiny)
    assert not train_run(run, should_stop=lambda: len(run.metrics) == 1)
    line = json.dumps(dict.fromkeys(METRICS, 2))
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write(line + "\n" + line[:37])
    assert train_run(run)
    assert_same_end(finished, run)


def test_runs_from_before_a_metric_was_measured_are_read_and_go_on(finished, tiny, tmp_path):
    run = Run.create(tmp_path / "old", tiny)
    assert not train_run(run, should_stop=lambda: len(run.metrics) == 1)
    path = run.path / "metrics.jsonl"
    old = {k: v for k, v in json.loads(path.read_text()).items() if not METRICS[k].optional}
    path.write_text(json.dumps(old) + "\n")
    assert list(run.metrics[0]) == list(METRICS)
    assert math.isnan(run.metrics[0]["forward_seconds"])
    assert train_run(run)
    assert_same_end(finished, run)


def test_damage_is_refused(tiny, tmp_path):
    run = Run.create(tmp_path / "damaged", tiny)
    assert not train_run(run, should_stop=lambda: len(run.metrics) == 1)
    good = (run.path / "metrics.jsonl").read_text()
    (run.path / "metrics.jsonl").write_text("{}\n" + good)
    with pytest.raises(CheckpointError, match="damaged in line 1"):
        train_run(run)
    (run.path / "metrics.jsonl").write_text("")
    with pytest.raises(CheckpointError, match="0 lines but the last checkpoint was written after 1"):
        train_run(run)
    (run.path / "metrics.jsonl").write_text(good)
    bytes_ = run.last_checkpoint.read_bytes()
    run.last_checkpoint.write_bytes(bytes_[: len(bytes_) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        train_run(run)


def test_a_checkpoint_of_another_model_is_refused(finished, tiny, tmp_path):
    other = Run.create(tmp_path / "other", changed(tiny, model={"channels": 16}))
    other.last_checkpoint.write_bytes(finished.last_checkpoint.read_bytes())
    other.best_checkpoint.write_bytes(finished.best_checkpoint.read_bytes())
    with pytest.raises(CheckpointError, match="of another model"):
        train_run(other)
    with pytest.raises(CheckpointError, match="of another model"):
        _ = other.model


def test_load_run(finished):
    run = load_run(finished.path)
    assert run.config == finished.config
    assert run.model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    with pytest.raises(CheckpointError, match="is not a run"):
        load_run(finished.path.parent)


def test_initial_point_moves_only_by_its_own_rule(tiny, tmp_path):
    learned = Run.create(tmp_path / "learned", changed(tiny, train={"epochs": 1}))
    train_run(learned)
    assert learned.metrics[0]["initial_point_loss"] > 0
    assert not any(name.startswith("optimizer.24") for name in read_checkpoint(learned.last_checkpoint)[0])
    zero = Run.create(tmp_path / "zero", changed(tiny, train={"epochs": 1}, model={"init": "zero"}))
    train_run(zero)
    assert zero.metrics[0]["initial_point_norm"] == 0
    assert zero.metrics[0]["initial_point_loss"] == 0


def test_training_does_not_go_on_from_a_checkpoint_of_schema_1(tiny, tmp_path, monkeypatch):
    run = Run.create(tmp_path / "r", changed(tiny, train={"epochs": 1}))
    train_run(run)
    tensors, header = read_checkpoint(run.last_checkpoint)
    old = {}
    for name, tensor in tensors.items():
        if name.startswith("model.encoder."):
            number, rest = name.removeprefix("model.encoder.").split(".", 1)
            old[f"model.features.{int(number) - 1}.{rest}"] = tensor
        elif "initial_point._extra" not in name:
            old[name.replace("model.layer.", "model.").replace("model.decoder.", "model.head.")] = tensor
    monkeypatch.setattr(checkpoint, "SCHEMA", 1)
    write_checkpoint(run.last_checkpoint, old, {k: v for k, v in header.items() if k != "schema"})
    monkeypatch.undo()
    image = torch.zeros(2, 1, 8, 8)
    assert torch.equal(run.load_model("last").model(image), run.model(image))
    with pytest.raises(CheckpointError, match="schema 1, of an earlier homojl"):
        train_run(run)


def test_without_a_validation_split_the_last_epoch_counts(tiny, tmp_path):
    run = Run.create(tmp_path / "r", changed(tiny, data={"val_fraction": 0.0}, train={"epochs": 2}))
    train_run(run)
    assert math.isnan(run.metrics[0]["val_accuracy"])
    assert read_checkpoint(run.best_checkpoint)[1]["position"]["best_epoch"] == 2
    assert "NaN" not in (run.path / "metrics.jsonl").read_text()


def test_a_loss_that_is_not_finite_ends_the_run_with_what_to_try(tiny, tmp_path):
    run = Run.create(tmp_path / "r", changed(tiny, optim={"name": "sgd", "lr": 1e30}))
    with pytest.raises(SolveError, match="the loss is nan at step"):
        train_run(run)


def test_failed_solves_are_counted(tiny, tmp_path):
    run = Run.create(tmp_path / "r", changed(tiny, solver={"max_steps": 2}, data={"val_fraction": 0.0},
                                             train={"epochs": 1}))  # fmt: skip
    train_run(run)
    assert run.metrics[0]["failed_solves"] > 0


def test_refused_before_any_work(tiny, tmp_path):
    from homojl.training.start import check_start

    for sections, message in [
        ({"train": {"batch_size": 5000}}, "only 1150 training images"),
        ({"train": {"device": "gpu"}}, "device 'gpu' cannot be used"),
        ({"data": {"dataset": "digitz"}}, "did you mean 'digits'"),
        ({"data": {"val_fraction": 1.0}}, "validation fraction"),
        ({"model": {"channels": 33}}, "multiple of 32"),
    ]:
        with pytest.raises(ConfigError, match=message):
            check_start(changed(tiny, **sections))


def test_an_existing_folder_is_not_overwritten_by_accident(finished, tiny, tmp_path):
    with pytest.raises(ConfigError, match="--resume"):
        Run.create(finished.path, tiny)
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="leaves it alone"):
        Run.create(tmp_path, tiny, overwrite=True)
    assert (tmp_path / "thesis.tex").exists()
    run = Run.create(tmp_path / "new", tiny)
    (run.path / "metrics.jsonl").write_text("old\n")
    assert Run.create(run.path, tiny, overwrite=True).metrics == []


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", {0: 0.1, 50: 0.1, 99: 0.1}),
        ("cosine", {0: 0.1, 50: (0.1 + 1e-6) / 2, 100: 1e-6}),
        ("one-cycle", {0: 0.004, 10: 0.052, 20: 0.1, 60: (0.1 + 1e-6) / 2, 100: 1e-6}),
        ("step", {0: 0.1, 19: 0.1, 20: 0.01, 39: 0.01, 40: 0.001, 99: 0.001}),
    ],
)
def test_learning_rates(schedule, rates):
    config = OptimConfig(lr=0.1, schedule=schedule, warmup=0.2, milestones=(2, 4))
    for step, rate in rates.items():
        assert learning_rate(config, step, 100, 10) == pytest.approx(rate)


def test_the_phases_are_all_of_a_step(tiny, tmp_path, monkeypatch):
    """With a clock that ticks when it is read: one tick for each phase, and none but theirs within."""
    ticks = itertools.count()
    for module in (loop, measuring):
        clock = types.SimpleNamespace(perf_counter=lambda: next(ticks) / 64, monotonic=time.monotonic)
        monkeypatch.setattr(module, "time", clock)
    run = Run.create(tmp_path / "r", changed(tiny, train={"epochs": 1}))
    train_run(run)
    (m,) = run.metrics
    assert [m[f"{name}_seconds"] for name in ("data", "forward", "backward", "optimizer")] == [17 / 64] * 4
    # The step's own first and last reading are one tick away from those of the phases.
    assert m["step"] * 64 / m["images_per_second"] == pytest.approx(17 * 6 / 64)
    assert m["validation_seconds"] == 1 / 64


class TestTimeBudget:
    """With a clock that ticks when it is read, so that every step takes 1/64 s on any machine."""

    @pytest.fixture(autouse=True)
    def _clock(self, monkeypatch):
        ticks = itertools.count()
        clock = types.SimpleNamespace(perf_counter=lambda: next(ticks) / 64, monotonic=time.monotonic)
        monkeypatch.setattr(loop, "time", clock)

    def test_ends_when_its_seconds_of_training_are_used_up(self, tiny, tmp_path):
        run = Run.create(tmp_path / "r", changed(tiny, train={"seconds": 0.56}))
        assert train_run(run)
        steps = [m["step"] for m in run.metrics]
        assert steps == sorted(set(steps))
        assert len(steps) == POINTS
        assert steps[-1] == 36
        stood = read_checkpoint(run.last_checkpoint)[1]["position"]
        assert (stood["step"], stood["lines"]) == (36, POINTS)
        assert stood["seconds"] == 36 / 64
        for m in run.metrics:
            assert m["epoch"] == pytest.approx(m["step"] / 17)
            assert m["images_per_second"] == 64 * 64
        assert math.isfinite(run.metrics[-1]["val_accuracy"])
        assert run.metrics[-1]["lr"] < 0.1 * run.metrics[0]["lr"], "the schedule follows the budget"

    def test_a_resumed_run_gets_the_rest_and_the_same_numbers(self, tiny, tmp_path):
        config = changed(tiny, train={"seconds": 0.56})
        straight, broken, rng = Run.create(tmp_path / "a", config), Run.create(tmp_path / "b", config), random.Random(3)
        train_run(straight)
        stops = 0
        while not train_run(broken, should_stop=lambda: rng.random() < 0.2):
            stops += 1
        assert stops > 2
        assert train_run(broken), "there is nothing left to do"
        assert_same_end(straight, broken)

    def test_validation_keeps_to_its_share_but_for_the_last(self, tiny, tmp_path, monkeypatch):
        run = Run.create(tmp_path / "r", changed(tiny, train={"seconds": 0.99}))
        train_run(run)  # 64 steps; a validation takes a tick as a step does, and is first taken to take 2.25
        validated = [m["step"] for m in run.metrics if math.isfinite(m["val_accuracy"])]
        assert validated == [27, 32, 37, 43, 53, 64]
        assert len(run.metrics) == POINTS
        assert read_checkpoint(run.last_checkpoint)[1]["position"]["validation_seconds"] == len(validated) / 64
        monkeypatch.setattr(position, "VALIDATION_SHARE", 0.0)
        run = Run.create(tmp_path / "s", changed(tiny, train={"seconds": 0.56}))
        train_run(run)
        assert [math.isfinite(m["val_accuracy"]) for m in run.metrics] == [False] * (POINTS - 1) + [True]
        assert read_checkpoint(run.best_checkpoint)[1]["position"]["step"] == 36

    def test_it_is_the_only_budget(self, tiny, tmp_path):
        run = Run.create(tmp_path / "r", changed(tiny, train={"seconds": 0.15, "epochs": 1, "batch_size": 512}))
        assert train_run(run)
        assert run.metrics[-1]["epoch"] == 5

    def test_must_be_positive(self, tiny):
        with pytest.raises(ConfigError, match=r"train\.seconds must be at least 0\.001"):
            changed(tiny, train={"seconds": 0.0})


def test_callbacks_are_told_every_step_and_line(tiny, tmp_path):
    told = []

    class Watching(Callback):
        def started(self, start):
            told.append(("started", start.step, len(start.lines), start.batches))

        def step(self, step, numbers):
            told.append(("step", step))
            assert math.isfinite(numbers["train_loss"])
            assert {"train_accuracy", "nfe_forward", "lr", "images_per_second"} <= numbers.keys()

        def line(self, metrics, best):
            told.append(("line", metrics["epoch"], best))

        def ended(self, complete):
            told.append(("ended", complete))

    run = Run.create(tmp_path / "r", changed(tiny, train={"epochs": 2}))
    assert not train_run(run, callbacks=[Watching()], should_stop=lambda: told[-1] == ("step", 20))
    assert train_run(run, callbacks=[Watching()])
    steps = [("step", n) for n in range(1, 35)]
    better = run.metrics[1]["val_accuracy"] >= run.metrics[0]["val_accuracy"]
    assert told == [
        ("started", 0, 0, 17), *steps[:17], ("line", 1, True), *steps[17:20], ("ended", False),
        ("started", 20, 1, 17), *steps[20:], ("line", 2, better), ("ended", True),
    ]  # fmt: skip


def test_a_callback_ends_training_and_an_error_in_one_is_told_to_the_others(tiny, tmp_path):
    class Ending(Callback):
        def step(self, step, numbers):
            return step == 5

    run = Run.create(tmp_path / "r", tiny)
    assert train_run(run, callbacks=[Ending()])
    assert [m["step"] for m in run.metrics] == [5]
    assert run.model(torch.zeros(1, 1, 8, 8)).shape == (1, 10)

    class Failing(Callback):
        def line(self, metrics, best):
            raise KilledError

    ended = []
    witness = types.SimpleNamespace(
        started=lambda start: None, step=lambda *_: None, line=lambda *_: None, ended=ended.append
    )
    with pytest.raises(KilledError):
        train_run(Run.create(tmp_path / "s", tiny), callbacks=[witness, Failing()])
    assert ended == [False]


def test_patience_ends_a_run_that_does_not_improve(tiny, tmp_path):
    config = changed(tiny, optim={"lr": 1e-12}, train={"epochs": 9, "patience": 2})
    run, broken = Run.create(tmp_path / "r", config), Run.create(tmp_path / "b", config)
    assert train_run(run)
    assert len(run.metrics) < 9
    rng = random.Random(5)
    while not train_run(broken, should_stop=lambda: rng.random() < 0.1):
        pass
    assert_same_end(run, broken)
    lines = len(run.metrics)
    assert train_run(run), "it has ended"
    assert len(run.metrics) == lines
    with pytest.raises(ConfigError, match="--from"):
        run.extend(20)


def test_a_longer_budget_goes_on_as_if_it_had_been_there(finished, tiny, tmp_path):
    constant = changed(tiny, optim={"schedule": "constant"})
    straight, longer = (
        Run.create(tmp_path / name, changed(constant, train={"epochs": n})) for name, n in (("a", 3), ("b", 1))
    )
    train_run(straight)
    train_run(longer)
    longer.extend(3)
    assert load_run(longer.path).config.train.epochs == 3
    train_run(longer)
    assert_same_end(straight, longer)
    with pytest.raises(ConfigError, match="would be fewer"):
        longer.extend(2)
    timed = Run.create(tmp_path / "t", changed(tiny, train={"seconds": 5.0}))
    with pytest.raises(ConfigError, match="5 seconds"):
        timed.extend(20)


def test_a_run_starts_from_anothers_weights(finished, tiny, tmp_path):
    from homojl.training.start import check_start

    config = changed(
        tiny, train={"start": str(finished.path), "epochs": 1}, optim={"lr": 1e-12, "schedule": "constant"}
    )
    run = Run.create(tmp_path / "r", config)
    assert run.started_from(check_start(config)[1]) == []
    train_run(run)
    theirs, ours = read_checkpoint(finished.best_checkpoint)[0], read_checkpoint(run.last_checkpoint)[0]
    weights = [name for name in theirs if name.endswith("weight") and name.startswith("model.")]
    assert all(torch.allclose(theirs[name], ours[name], atol=1e-6) for name in weights)
    other = ExperimentConfig.from_dict({**config.to_dict(), "model": {"name": "node", "filters": 4}})
    with pytest.raises(CheckpointError, match="none of the weights"):
        check_start(other)
    kept = Run.create(tmp_path / "k", config)
    train_run(kept)  # in Python nobody called `started_from`
    assert torch.equal(read_checkpoint(kept.last_checkpoint)[0][weights[0]], ours[weights[0]])
