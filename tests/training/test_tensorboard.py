"""TensorBoard's event files hold what the loop measured, also where a run was stopped and went on."""

from __future__ import annotations

import math
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from homojl.errors import ConfigError
from homojl.results.records import METRICS
from homojl.training.callbacks import Callback
from homojl.training.loggers import TensorBoard
from homojl.training.loop import train_run
from homojl.training.run import Run

pytestmark = pytest.mark.slow


def scalars(run: Run) -> dict[str, dict[int, float]]:
    """Tag -> step -> value, as TensorBoard shows it."""
    events = EventAccumulator(str(run.path / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


class Counting(Callback):
    def __init__(self) -> None:
        self.calls = []

    def step(self, *_) -> None:
        self.calls.append("step")

    def line(self, *_) -> None:
        self.calls.append("line")


def test_every_step_and_every_line_is_written_once_however_often_the_run_stopped(tiny, tmp_path):
    run, shown = Run.create(tmp_path / "r", tiny), Counting()
    total, stops = 3 * 17, iter((7, 20, 10**9))
    complete = False
    while not complete:
        stop, told = next(stops), [TensorBoard(), shown]
        complete = train_run(run, callbacks=told, should_stop=lambda stop=stop: shown.calls.count("step") >= stop)
    found = scalars(run)
    assert {tag.partition("/")[0] for tag in found} == {"step", "epoch"}
    assert list(found["step/train_loss"]) == list(range(1, total + 1))
    assert shown.calls.count("step") == total
    assert shown.calls.count("line") == 3
    assert not any(tag.endswith("_metric") for tag in found), "the run has no metric of its own"
    for name in METRICS:
        if name not in ("step", "train_metric", "val_metric"):
            written = found[f"epoch/{name}"]
            assert list(written) == [17, 34, 51]
            assert list(written.values()) == pytest.approx([m[name] for m in run.metrics], rel=1e-6)
    first = [found["step/train_loss"][step] for step in range(1, 18)]
    assert math.fsum(first) / 17 == pytest.approx(run.metrics[0]["train_loss"], rel=1e-5)
    evaluations = [found["step/nfe_forward"][step] for step in range(18, 35)]
    assert sum(evaluations) / 17 == pytest.approx(run.metrics[1]["nfe_forward"])


def test_what_a_killed_run_wrote_beyond_its_checkpoint_is_dropped(tiny, tmp_path):
    run = Run.create(tmp_path / "r", tiny)

    class KilledError(Exception):
        pass

    class Dying(Callback):
        def step(self, step: int, _: dict[str, float]) -> None:
            if step == 25:
                raise KilledError

    with pytest.raises(KilledError):
        train_run(run, callbacks=[Dying(), TensorBoard()])
    assert list(scalars(run)["step/lr"]) == list(range(1, 25))
    train_run(
        run, callbacks=[TensorBoard()], should_stop=lambda: True
    )  # after step 18, the first beyond the checkpoint
    assert list(scalars(run)["step/lr"]) == list(range(1, 19))


def test_without_tensorboard_it_is_one_line_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install 'homojl\[tensorboard\]'"):
        TensorBoard()
    assert not (tmp_path / "r").exists()
