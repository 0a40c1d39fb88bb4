"""Several processes: the numbers of one, whoever dies, stops or goes on. All processes here are real ones."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from homojl.data.readers import DIGITS
from homojl.errors import ConfigError
from homojl.functions.draws import draw_rows
from homojl.training.checkpoint import read_checkpoint
from homojl.training.config import ExperimentConfig, merge
from homojl.training.loop import train_run
from homojl.training.ranks import Ranks
from homojl.training.run import Run, load_run
from tests import warm
from tests.shared import made_once

pytestmark = pytest.mark.slow

WORKER = Path(__file__).with_name("ranks_worker.py")
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "WARM_WITHOUT_FIGURES": "yes"}
PATIENCE = 900  # seconds, only so that a hang is a failure
COLD = {"PYTHON_EXEC": sys.executable}  # for torchrun: processes that load everything themselves, in their order
TRAIN = ("-m", "homojl_cli", "train", "--quiet")

# An epoch is one step, so that the lines of metrics are the loss curve.
SETTINGS = {
    "model": {"channels": 4},
    "data": {"val_fraction": 0.2, "pad": 1, "flip": True},
    "optim": {"lr": 0.03},
    "initial_point": {"every": 3},
    "train": {
        "epochs": 100, "batch_size": 32, "eval_batch_size": 3, "dtype": "float64", "device": "cpu", "threads": 1
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> str:
    """48 digits to train and validate on, 10 to test on."""

    def make(folder: Path) -> None:
        with np.load(DIGITS) as digits:
            x, y = (digits["images"][:58] * 15.9375).astype(np.uint8), digits["labels"][:58].astype(np.int64)
        np.savez(folder / "digits.npz", x_train=x[:48], y_train=y[:48], x_test=x[48:], y_test=y[48:])

    return str(made_once(tmp_path_factory, "images", make) / "digits.npz")


def configured(images: str, changes: dict | None = None) -> ExperimentConfig:
    return ExperimentConfig.from_dict(merge(SETTINGS, {"data": {"dataset": images}}, changes or {}))


def options(images: str, changes: dict | None = None) -> list[str]:
    """The same as arguments of `homojl train`."""
    sections = merge(SETTINGS, {"data": {"dataset": images}}, changes or {})
    return [f"--set={s}.{k}={str(v).lower()}" for s, values in sections.items() for k, v in values.items()]


@pytest.fixture(scope="module")
def alone(images, tmp_path_factory) -> Run:
    """The run of one process that others are held against."""

    def make(folder: Path) -> None:
        assert train_run(Run.create(folder / "run", configured(images)))

    return Run.open(made_once(tmp_path_factory, "alone", make) / "run")


def assert_same_numbers(run: Run, reference: Run) -> None:
    """The same lines, loss curve first, and the same weights; what is counted is equal."""
    ours, theirs = run.metrics, reference.metrics
    assert len(ours) == len(theirs)
    for name in ("train_loss", "initial_point_loss", "initial_point_norm", "val_loss"):
        differences = [abs(a[name] - b[name]) for a, b in zip(ours, theirs, strict=True)]
        # An evaluation keeps its logits in float32.
        assert max(differences) <= (1e-7 if name == "val_loss" else 1e-9), (name, max(differences))
    for name in ("step", "lr", "train_accuracy", "val_accuracy", "nfe_forward", "nfe_backward", "nfe_val",
                 "accepted_steps", "rejected_steps", "failed_solves"):  # fmt: skip
        assert [m[name] for m in ours] == [m[name] for m in theirs], name
    tensors, expected = (read_checkpoint(r.last_checkpoint)[0] for r in (run, reference))
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-7, atol=1e-7, msg=name)


def torchrun(*command: object, **environment: str) -> subprocess.Popen:
    """Two processes, which start with PyTorch loaded and draw no figures."""
    words = [Path(warm.python()).with_name("torchrun"), "--standalone", "--nproc-per-node", "2", *command]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([str(word) for word in words], env=ENVIRONMENT | environment, **pipes)


def finish(process: subprocess.Popen) -> tuple[str, str]:
    """Its output, once it has ended by itself."""
    try:
        return process.communicate(timeout=PATIENCE)
    finally:
        process.terminate()  # torchrun passes it on


def wait_for_lines(run: Path, count: int, process: subprocess.Popen) -> None:
    """Until the run has that many lines of metrics."""
    end = time.monotonic() + PATIENCE
    while not (run / "metrics.jsonl").exists() or (run / "metrics.jsonl").read_text().count("\n") < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


def threads_left(err: str) -> list[str]:
    """What the processes of `ranks_worker.py` that ended by themselves have said of their threads."""
    return [line for line in err.splitlines() if line.startswith("left over:")]


def worker(folder: Path, rank: int) -> int:
    """The process id of a rank that torchrun has started for the run in that folder."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            started_for = str(folder) in (process / "cmdline").read_text().split("\0")
            if started_for and f"RANK={rank}" in (process / "environ").read_text().split("\0"):
                return int(process.name)
    raise AssertionError(f"torchrun has no rank {rank}")


def test_two_processes_have_the_loss_curve_of_one(images, alone, tmp_path):
    process = torchrun(*TRAIN, *options(images), "--out", tmp_path / "run")
    out, err = finish(process)
    assert process.returncode == 0, err
    assert out == f"{tmp_path / 'run'}\n"  # one process speaks
    run = load_run(tmp_path / "run")
    assert_same_numbers(run, alone)
    assert len(run.metrics) == 100
    assert run.metrics[-1]["train_loss"] < run.metrics[0]["train_loss"] - 0.4
    assert run.environment["processes"] == 2
    assert (run.path / "results.h5").exists()


KINDS = {
    "odd batch": {"train": {"batch_size": 5}},  # parts of three and two, validation of a single last image
    "gauss": {"solver": {"adjoint": "gauss", "first_step": "remember"}},
    "per sample": {"solver": {"batch": "per-sample"}},
    "equal steps": {"solver": {"algorithm": "rk4", "adjoint": "direct"}},
    "anode": {"model": {"name": "anode", "filters": 4}},
    "deq": {"model": {"name": "deq", "jacobian_weight": 0.1}},
    "mondeq": {"model": {"name": "mondeq", "channels": [4]}},
    "pcdeq": {"model": {"name": "pcdeq", "form": "linear", "channels": [8]}},
}


def test_every_kind_of_model_and_gradient(images, tmp_path):
    for name, changes in KINDS.items():
        own = {"model": {"channels": SETTINGS["model"]["channels"]}} if "model" not in changes else {}
        base = {section: values for section, values in SETTINGS.items() if section != "model"}
        short = {"data": {"dataset": images}, "train": {"epochs": 6}}
        config = ExperimentConfig.from_dict(merge(base, own, short, changes))
        for place in ("one", "two"):
            Run.create(tmp_path / place / name, config)
        assert train_run(load_run(tmp_path / "one" / name))
    process = torchrun(WORKER, *(tmp_path / "two" / name for name in KINDS), **COLD)
    _, err = finish(process)
    assert process.returncode == 0, err
    assert threads_left(err) == ["left over: []"] * 2
    for name in KINDS:
        assert_same_numbers(load_run(tmp_path / "two" / name), load_run(tmp_path / "one" / name))


def test_threads_of_the_collectives_end_before_the_interpreter_after_an_error_too(tmp_path):
    _, err = finish(torchrun(WORKER, tmp_path / "no run", **COLD))
    assert f"{tmp_path / 'no run'}" in err
    left = threads_left(err)
    assert left
    assert set(left) == {"left over: []"}


def test_a_killed_process_ends_the_others_and_any_number_goes_on(images, alone, tmp_path):
    folder = tmp_path / "run"
    process = torchrun(*TRAIN, *options(images), "--out", folder)
    wait_for_lines(folder, 10, process)
    os.kill(worker(folder, 1), signal.SIGKILL)
    _, err = finish(process)
    assert process.returncode != 0
    errors = [line for line in err.splitlines() if line.startswith("homojl: ")]
    assert len(errors) == 1, err
    assert "process 0 of 2 has lost the others: one was killed" in errors[0]
    assert "--resume" in errors[0]

    process = torchrun(*TRAIN, "--resume", folder)
    wait_for_lines(folder, 30, process)
    process.send_signal(signal.SIGTERM)
    out, err = finish(process)
    assert out == f"stopped and saved; go on with: homojl train --resume {folder}\n", err
    assert not [line for line in err.splitlines() if line.startswith("homojl: ")]

    run = load_run(folder)
    assert 30 <= len(run.metrics) < 100
    assert train_run(run)
    assert_same_numbers(run, alone)


def test_what_one_process_began_two_end_and_only_the_first_writes(images, alone, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    for place in (here, there):
        place.mkdir()
    run = Run.create(here / "run", configured(images))
    steps = itertools.count(1)
    assert not train_run(run, should_stop=lambda: next(steps) == 60)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank, place in enumerate((here, there)):  # as a scheduler may start them, without a shared disk
        group = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        command = [warm.python(), *TRAIN, "--resume", "run"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, cwd=place, env=ENVIRONMENT | group, **pipes))
    outputs = [finish(process) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert [out for out, _ in outputs] == ["run\n", ""]
    assert_same_numbers(run, alone)
    assert list(there.iterdir()) == []


def test_a_mistake_is_told_once(images, tmp_path):
    process = torchrun(*TRAIN, *options(images), "--set=train.batch_size=1", "--out", tmp_path / "r")
    _, err = finish(process)
    assert process.returncode != 0
    errors = [line for line in err.splitlines() if line.startswith("homojl: ")]
    assert errors == ["homojl: error: train.batch_size is 1: with 2 processes each needs an image of every batch"]
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"solver": {"backend": "julia"}}, "must be pytorch"),
        ({"solver": {"algorithm": "kvaerno5"}}, "explicit method"),
        ({"solver": {"algorithm": "adamsmoulton", "adjoint": "direct"}}, "explicit method"),
        ({"solver": {"adjoint": "backsolve"}}, "checkpoint, direct or gauss"),
        ({"solver": {"batch": "per-sample", "first_step": "remember"}}, "median"),
        ({"train": {"device": "cuda:1"}}, "auto, cpu or cuda"),
        ({"train": {"batch_size": 2}}, "an image of every batch"),
    ],
)
def test_refused(images, changes, message):
    config = configured(images, changes)
    with pytest.raises(ConfigError, match=message):
        Ranks(1, 3).fitted(config)
    assert Ranks().fitted(config) == config


def test_a_process_without_a_gpu_of_its_own_is_told(images, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ConfigError, match="process 1 has no GPU of its own"):
        Ranks(1, 2).fitted(configured(images, {"train": {"device": "cuda"}}))
    Ranks(1, 2).fitted(configured(images))  # on the CPU


@pytest.mark.parametrize("rows", [1, 2, 5, 64])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_parts_cover_a_batch(rows, size):
    batch = torch.arange(rows)
    parts = [Ranks(rank, size).part(batch) for rank in range(size)]
    assert torch.equal(torch.cat(parts), batch)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_draws_do_not_depend_on_how_a_batch_is_divided():
    def draw(shape):
        return torch.rand(shape, generator=torch.Generator().manual_seed(1))

    whole = draw_rows(draw, (7, 3))
    assert torch.equal(torch.cat([draw_rows(draw, (3, 3), (0, 7)), draw_rows(draw, (4, 3), (3, 7))]), whole)


NETWORK = """
import torch
from torch import nn
import homojl as hj

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, z, x):
        return torch.tanh(self.conv(z) + x)

class Net(nn.Sequential):
    def __init__(self, n_classes):
        field = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Tanh())
        super().__init__(
            nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4),
            hj.nn.Equilibrium(Block(), hj.Anderson(rtol=1e-9, max_steps=100)),
            hj.nn.ODE(lambda t, y: field(y), hj.Bosh3(rtol=1e-3, atol=1e-3)), field,
            nn.Flatten(), nn.Linear(64, n_classes),
        )
"""


def test_a_network_of_ones_own_has_the_numbers_of_one_process(images, tmp_path, monkeypatch):
    (tmp_path / "net.py").write_text(NETWORK)
    name = f"{tmp_path}/net.py:Net"
    monkeypatch.setenv("HOMOJL_ALLOW", name)
    changes = {"model": {"name": name}, "train": {"epochs": 10}}
    base = {key: value for key, value in SETTINGS.items() if key != "model"}
    config = ExperimentConfig.from_dict(merge(base, {"data": {"dataset": images}}, changes))
    one, two = (Run.create(tmp_path / where, config) for where in ("one", "two"))
    assert train_run(one)
    process = torchrun(WORKER, two.path, HOMOJL_ALLOW=name)
    _, errors = finish(process)
    assert process.returncode == 0, errors
    for ours, theirs in zip(two.metrics, one.metrics, strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], abs=1e-6)
        assert ours["nfe_forward"] == theirs["nfe_forward"]
