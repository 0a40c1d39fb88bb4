"""A small comparison from the command line: what it leaves, that it goes on, and what it says of failures."""

from __future__ import annotations

import json
import math
import re
import signal
import statistics
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from unittest import mock

import h5py
import numpy as np
import pytest

from homojl.comparison.estimate import estimate
from homojl.comparison.experiment import MODELS_ALONE
from homojl.comparison.hdf5 import SCHEMA
from homojl.comparison.plan import make_plan
from homojl.errors import DataError
from homojl.files import locked
from homojl.results.hdf5 import read_results
from homojl.training.run import Run
from tests import warm
from tests.command import homojl
from tests.results.netcdf import assert_netcdf

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[2] / "docs"

EXPERIMENT = """
title = "Step sizes"
source = "a test"
models = ["homoode", "pcdeq"]
images = 100
x = "optim.lr"

[variations.low]
models = ["homoode"]
optim = { lr = 0.001 }

[variations.high]
models = ["homoode"]
optim = { lr = 0.01 }

[variations.absurd]
models = ["pcdeq"]
optim = { name = "sgd", lr = 1e30, schedule = "constant" }

[measurements.fine.solver]
rtol = 1e-6
atol = 1e-6

[measurements."50 at a time".train]
eval_batch_size = 50

[measurements.step.train]
batch_size = 32

[measurements."at its end"]
start = 1.0
"""
OPTIONS = [
    "--set", "model.channels=4", "--set", "train.batch_size=256", "--backend", "pytorch", "--device", "cpu",
    "--set", "train.threads=1",
]  # fmt: skip


def compare(*args: object, cwd: Path) -> subprocess.CompletedProcess:
    """In this process; the runs have processes of their own."""
    with mock.patch.object(sys, "executable", warm.python()):
        return homojl("compare", *args, cwd=cwd)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished comparison: its folder, the arguments that made it, what it printed."""
    cwd = tmp_path_factory.mktemp("compare")
    (cwd / "mine.toml").write_text(EXPERIMENT)
    args = ["--experiment", "mine.toml", "--seeds", "0,1", "--epochs", 1, "--jobs", 2, "--out", "out", *OPTIONS]
    result = compare(*args, cwd=cwd)
    assert result.returncode == 0, result.stderr + result.stdout
    return cwd / "out", args, result


def test_one_process_at_a_time(made):
    folder, args, _ = made
    with locked(folder):
        result = compare(*args, cwd=folder.parent)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "out is in use: process" in result.stderr
    assert compare(*args, cwd=folder.parent).returncode == 0


@pytest.mark.parametrize(
    ("setting", "message"),
    [('solver = { algorithm = "tsti5" }', "did you mean 'tsit5'"), ("train = { eval_batch_size = 0 }", "whole number")],
)
def test_a_measurement_that_cannot_be_made_is_refused_at_once(tmp_path, setting, message):
    (tmp_path / "mine.toml").write_text(f'models = ["homoode"]\n[measurements.odd]\n{setting}\n')
    result = compare("--experiment", "mine.toml", "--epochs", 1, "--out", "out", *OPTIONS, cwd=tmp_path)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


LABELS = ["homoode, low", "homoode, high", "pcdeq, absurd"]


def test_each_run_is_an_ordinary_run(made):
    folder, _, _ = made
    names = [f"{re.sub(', ', '-', label)}-seed{seed}" for label in LABELS for seed in (0, 1)]
    assert sorted(p.name for p in (folder / "runs").iterdir()) == sorted(names)
    for name in names:
        run = Run.open(folder / "runs" / name)
        assert run.config.train.seed == int(name[-1])
        assert (run.results_path.exists(), len(run.metrics)) == ((False, 0) if "absurd" in name else (True, 1))


def test_what_is_printed(made):
    _, _, result = made
    lines = result.stdout.splitlines()
    assert lines[0] == (
        "Step sizes on digits: 6 runs of 1 epochs (homoode, low, homoode, high, pcdeq, absurd; seeds 0,1), "
        "2 at a time -> out"
    )
    assert any(re.match(r"homoode, low, seed 1: +1/1 ", line) for line in lines)
    assert any(re.match(r"homoode, high, seed 0: test accuracy [\d.]+ % \(best, epoch 1\)", line) for line in lines)
    assert "6 of 6 runs have ended" in lines
    assert lines[-1] == "out"
    table = lines[next(i for i, line in enumerate(lines) if "test accuracy [%]" in line) + 1 :][:3]
    for label, line in zip(LABELS, table, strict=True):
        assert line.startswith(label)
    assert re.search(r"\d+\.\d\d ± \d+\.\d\d", table[0])
    assert "failed" in table[-1]
    assert sum(line.startswith("pcdeq, absurd, seed ") and "failed: the loss is " in line for line in lines) == 2


def test_the_file_holds_the_numbers_of_the_runs(made):
    folder, _, _ = made
    data, attributes = SCHEMA.load(folder / "comparison.h5")
    assert attributes["dataset"] == "digits"
    assert attributes["title"] == "Step sizes"
    assert [label.decode() if isinstance(label, bytes) else label for label in data["/table/label"]] == LABELS
    for i, name in enumerate(data["/runs/name"]):
        if data["/runs/status"][i] == "failed":
            assert "the loss is" in data["/runs/message"][i]
            assert math.isnan(data["/runs/test_accuracy"][i])
            assert not (data["/curves/run"] == i).any()
            continue
        record = read_results(folder / "runs" / name / "results.h5")
        answers = record.evaluation
        assert data["/runs/parameters"][i] == record.parameters
        assert data["/runs/test_accuracy"][i] == answers.accuracy
        assert data["/runs/inference_seconds"][i] == pytest.approx(answers.seconds / len(answers.labels))
        assert data["/runs/test_nfe"][i] == answers.nfe.mean()
        lines = data["/curves/run"] == i
        for key in ("train_loss", "val_accuracy", "nfe_backward", "peak_memory"):
            assert data[f"/curves/{key}"][lines].tolist() == [row[key] for row in record.metrics]
        seconds = [row["step"] * 256 / row["images_per_second"] for row in record.metrics]
        assert data["/curves/train_seconds"][lines] == pytest.approx(seconds)
    accuracies = data["/runs/test_accuracy"]
    assert data["/table/test_accuracy_mean"][0] == pytest.approx(accuracies[:2].mean())
    assert data["/table/test_accuracy_sd"][0] == pytest.approx(statistics.stdev(accuracies[:2].tolist()))
    assert data["/table/finished"].tolist() == [2, 2, 0]
    assert math.isnan(data["/table/test_accuracy_mean"][2])
    measured = list(zip(data["/measurements/run"].tolist(), data["/measurements/name"], strict=True))
    assert measured == [(i, name) for i in range(4) for name in ("fine", "50 at a time", "step", "at its end")]
    assert data["/measurements/images"][:4].tolist() == [100, 100, 32, 100]
    assert data["/measurements/batch_size"][:4].tolist() == [250, 50, 32, 250]
    assert (data["/measurements/seconds"] > 0).all()
    if sys.platform == "linux":
        assert (data["/measurements/memory"] >= 0).all()
        assert (data["/measurements/memory"] < 1000).all()
    fine = data["/measurements/nfe"][data["/measurements/name"] == "fine"]
    assert (fine > data["/runs/test_nfe"][:4]).all(), "a smaller tolerance costs more"


def test_every_dataset_is_described_and_the_docs_show_the_schema(made):
    folder, _, _ = made
    assert_netcdf(folder / "comparison.h5")
    with h5py.File(folder / "comparison.h5") as file:
        assert all(file[name].attrs["unit"] and file[name].attrs["description"] for name in SCHEMA.entries)
        assert all(file[name].attrs["description"] for name in SCHEMA.groups)
    assert SCHEMA.describe() in (DOCS / "hdf5.md").read_text("utf-8")


def test_a_damaged_file_is_refused(made, tmp_path):
    content = bytearray((made[0] / "comparison.h5").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "c.h5").write_bytes(content)
    with pytest.raises(DataError, match="its checksum is wrong"):
        SCHEMA.load(tmp_path / "c.h5")


def test_figures(made):
    folder, _, _ = made
    stems = ["accuracy_and_cost", "evaluations", "learning_curves", "measurements", "variation"]
    assert sorted(p.name for p in (folder / "figures").iterdir()) == [f"{s}.{f}" for s in stems for f in ("png", "svg")]
    for stem in stems:
        texts = {
            "".join(e.itertext())
            for e in ET.parse(folder / "figures" / f"{stem}.svg").iter("{http://www.w3.org/2000/svg}text")
        }
        wanted = {"homoode"} if stem == "variation" else set(LABELS[:2])
        assert wanted <= texts
        assert "pcdeq, absurd" not in texts
        assert any("Step sizes on digits" in text for text in texts)
        assert not any("$" in text for text in texts), "labels are plain text"


def test_the_report(made):
    folder, _, _ = made
    text = (folder / "report.md").read_text("utf-8")
    assert text.startswith("# Step sizes on digits\n")
    for label in LABELS:
        assert f"| {label} |" in text
    assert "## Runs that did not finish" in text
    assert "First by test accuracy: **" in text
    assert "We know of none on digits." in text
    assert "| Budget | 1 epochs for each run" in text
    assert "| `optim.lr` | 0.001 | 0.01 | 1e+30 |" in text
    links = re.findall(r"\]\((figures/.*?)\)", text)
    assert len(links) == 10
    assert all((folder / link).exists() for link in links)


def test_the_same_command_keeps_what_has_ended(made):
    folder, args, first = made
    before = {p: p.stat().st_mtime_ns for p in folder.glob("[or]*/**/*") if p.is_file()}
    again = compare(*args, cwd=folder.parent)
    assert again.returncode == 0, again.stderr
    assert "6 of 6 runs have ended before and are kept" in again.stdout
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert again.stdout.splitlines()[-6:] == first.stdout.splitlines()[-6:]


def test_ctrl_c_saves_and_the_same_command_goes_on(tmp_path, monkeypatch):
    args = ["compare", "--models", "pcdeq", "--epochs", 3, "--seeds", "0,1", "--out", "out", *OPTIONS]
    # As in this process, those of the runs start warm.
    code = f"import sys; sys.executable = {warm.python()!r}; from homojl_cli.main import main; main()"
    command = [warm.python(), "-c", code, *map(str, args), "--set", "train.checkpoint_seconds=0"]
    monkeypatch.setenv("WARM_WITHOUT_FIGURES", "yes")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    run = tmp_path / "out" / "runs" / "pcdeq-seed0"
    while not (run / "checkpoints" / "last.safetensors").exists():
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate()
    assert (process.returncode, stderr) == (130, "")
    assert stdout.splitlines()[-2:] == [
        "pcdeq, seed 0: stopped and saved",
        "stopped and saved; the same command goes on",
    ]
    assert list((tmp_path / "out" / "outcomes").iterdir()) == []
    assert not (tmp_path / "out" / "runs" / "pcdeq-seed1").exists()

    resumed = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert [m["epoch"] for m in Run.open(run).metrics] == [1, 2, 3]
    lines = resumed.stdout.splitlines()
    assert [line for line in lines if line.startswith("pcdeq, seed")] == ["pcdeq, seed 0:", "pcdeq, seed 1:"]
    assert max(len(line) for line in lines[1 : lines.index("2 of 2 runs have ended")]) <= 80
    outcome = json.loads((tmp_path / "out" / "outcomes" / "pcdeq-seed0.json").read_text())
    assert outcome == {"status": "finished", "message": "", "measurements": []}


def test_a_run_that_breaks_off_is_reported_and_tried_again(tmp_path):
    args = ["--models", "pcdeq", "--epochs", 1, "--out", "out", *OPTIONS]
    (tmp_path / "out" / "outcomes" / "pcdeq-seed0.json").mkdir(parents=True)  # cannot be written
    # A folder stands where the file should be, so the run looks as if it had ended.
    broken = compare(*args, cwd=tmp_path)
    assert broken.returncode == 2
    assert broken.stderr.startswith("homojl: error: out/outcomes/pcdeq-seed0.json cannot be read")
    (tmp_path / "out" / "outcomes" / "pcdeq-seed0.json").rmdir()
    (tmp_path / "out" / "outcomes").rmdir()
    (tmp_path / "out" / "outcomes").write_text("in the way")
    broken = compare(*args, cwd=tmp_path)
    assert broken.returncode == 1, broken.stderr
    assert "pcdeq, seed 0: broken off: " in broken.stdout
    (tmp_path / "out" / "outcomes").unlink()
    assert compare(*args, cwd=tmp_path).returncode == 0


def test_bad_input_gets_one_line(tmp_path):
    for args, words in [
        (["--epochs", 1, "--seconds", 1], "two budgets"),
        (["--seeds", "0,x"], "'0,x' is not a whole number"),
        (["--experiment", "adjoint"], "did you mean 'adjoints'"),
        (["--models", "deq,homode"], "did you mean 'homoode'"),
    ]:
        result = compare(*args, cwd=tmp_path)
        assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
        assert words in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_quantities_are_finite_where_a_run_finished(made):
    data, _ = SCHEMA.load(made[0] / "comparison.h5")
    finished = data["/runs/status"] == "finished"
    for name in ("test_loss", "nfe_forward", "nfe_backward", "peak_memory", "train_seconds", "val_accuracy"):
        assert np.isfinite(data[f"/runs/{name}"][finished]).all()
        assert (data[f"/runs/{name}"][finished] > 0).all()


def test_an_estimate_by_counted_operations_starts_nothing(tmp_path):
    args = ["--models", "homoode,cnn", "--epochs", 10, "--estimate", "--rate", 1e7, "--out", "out", *OPTIONS]
    result = compare(*args, "--seeds", "0,1", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert not (tmp_path / "out").exists()
    numbers = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines()[2:]}
    assert set(numbers) == {"homoode", "cnn", "all"}
    nfe, training, inference, runs, each, both = map(float, numbers["cnn"])
    assert (nfe, runs) == (0, 2)
    assert training > 2 * inference > 0
    assert both == pytest.approx(2 * each, abs=0.02)
    assert each > 0.01
    assert float(numbers["homoode"][0]) > 6  # evaluations, which the backward pass takes again and differentiates
    assert float(numbers["homoode"][1]) > 5 * training


def test_a_count_of_operations():
    settings = [{"model": {"channels": 4}, "solver": {"backend": "pytorch"}}]
    options = {"dataset": "digits", "seeds": [0], "models": ["cnn"], "epochs": 2, "settings": settings}
    (row,) = estimate(make_plan(MODELS_ALONE, Path("none"), **options))
    # Four 3 x 3 convolutions, one of 1 x 1 and a linear layer, by hand: 8 x 8 images, 4 x 4 states of 4 channels.
    assert row.inference == 2 * (9 * 4 * 64 + 9 * 16 * 16 + 2 * 9 * 16 * 16 + 4 * 16 * 16 + 16 * 10)
    whole = 2 * (1151 * row.training + 287 * row.inference) + 359 * row.inference
    assert row.operations == pytest.approx(whole, rel=1e-3)
