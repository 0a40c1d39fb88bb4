"""Networks and data of a user's own in the pipeline: named on the command line, and run only then."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from click.testing import CliRunner

import homojl as hj
from homojl import own
from homojl.training import ExperimentConfig
from homojl_cli.main import cli

CODE = """
import pathlib
import torch
from torch import nn
import homojl as hj

pathlib.Path(__file__).with_suffix(".ran").touch()

class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, z, x):
        return torch.tanh(self.conv(z) + x)

class Net(nn.Sequential):
    def __init__(self, input_shape, n_classes, channels=2, norm="none"):
        c, h, w = input_shape
        layer = hj.nn.Equilibrium(Block(channels), hj.Anderson(rtol=1e-3), jacobian_weight=0.1)
        linear = nn.Linear(channels * h * w, n_classes)
        super().__init__(nn.Conv2d(c, channels, 3, padding=1), layer, nn.Flatten(), linear)

class Paper(nn.Sequential):
    def __init__(self, n_classes):
        super().__init__(nn.Conv2d(1, 4, 3, stride=2), hj.nn.HomoODE(4), nn.Flatten(), nn.Linear(36, n_classes))

class Plain(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 10))

class Wrong(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(1, 10, 3))

def needs(width):
    return nn.Flatten()

def named(name="x"):
    return nn.Flatten()

def nothing():
    return 3

def data():
    d = hj.load_dataset("digits")
    return d.x_train[:128], d.y_train[:128], d.x_test[:32], d.y_test[:32]

def dataset():
    return hj.ImageDataset("mine", *data(), 10, tuple("abcdefghij"))

def half():
    return data()[:2]
"""
SMALL = ["--epochs", "2", "--set", "train.threads=1", "--set", "train.batch_size=32"]


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A file of code that nothing has been allowed of."""
    monkeypatch.setattr(own, "_allowed", set())
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.py"
    path.write_text(CODE)
    return path


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def called(*words):
    result = CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output


def refused(*words) -> str:
    with pytest.raises(hj.HomoJLError) as caught:
        called(*words)
    return str(caught.value)


def test_a_network_and_data_of_ones_own_make_a_run(file, monkeypatch):
    called("train", "--model", "mine.py:Net", "--dataset", "mine.py:data", *SMALL, "--out", "run", "--set",
           "model.channels=3")  # fmt: skip
    run = hj.load_run("run")
    assert run.config.model.name == f"{file}:Net"
    assert run.config.model.options == {"channels": 3, "norm": "none"}
    assert len(run.metrics) == 2
    assert all(row["nfe_forward"] > 1 and row["nfe_backward"] > 1 for row in run.metrics)
    network = run.model.network
    assert isinstance(network[1], hj.nn.Equilibrium)
    assert run.model(torch.randn(2, 1, 8, 8)).shape == (2, 10)
    for words in (["evaluate", "run"], ["export", "run", "--out", "run.h5"], ["plot", "run"], ["report", "run"]):
        called(*words)


def test_a_stopped_run_goes_on_with_the_same_numbers(file):
    whole, part = [
        ["train", "--model", "mine.py:Paper", "--dataset", "mine.py:dataset", *SMALL, "--out", out]
        for out in ("a", "b")
    ]
    called(*whole)
    called(*part)
    lines = [json.loads(line) for line in (file.parent / "b/metrics.jsonl").read_text().splitlines()]
    assert [line["train_loss"] for line in lines] == [row["train_loss"] for row in hj.load_run("a").metrics]
    called("train", "--resume", "b", "--model", "mine.py:Paper", "--dataset", "mine.py:dataset")
    assert hj.load_run("b").model.network[1].initial_point.value.abs().sum() > 0


def test_a_network_without_a_layer_is_a_baseline(file):
    called("train", "--model", "mine.py:Plain", "--set", "train.threads=1", "--epochs", "1", "--out", "run")
    assert hj.load_run("run").metrics[0]["nfe_forward"] == 0


def test_a_run_does_not_have_code_run_that_nobody_named(file, monkeypatch):
    called("train", "--model", "mine.py:Plain", "--dataset", "mine.py:data", *SMALL, "--out", "run")
    monkeypatch.setattr(own, "_allowed", set())
    ran = file.with_suffix(".ran")
    ran.unlink()
    hostile = file.parent / "hostile.py"
    shutil.copy(file, hostile)
    config = file.parent / "run/config.toml"
    config.write_text(config.read_text().replace("mine.py", "hostile.py"))
    for words in (["evaluate", "run"], ["report", "run"], ["train", "--resume", "run"], ["export", "run"]):
        assert "runs only where you name it" in refused(*words)
    with pytest.raises(hj.ConfigError, match=r"hj\.allow"):
        hj.load_run("run").config  # noqa: B018
    with pytest.raises(hj.ConfigError, match="only where you name it"):
        hj.load_dataset("os:getcwd")
    assert not hostile.with_suffix(".ran").exists()
    monkeypatch.setenv("HOMOJL_ALLOW", f"x.py:y,{hostile}:Plain")
    assert hj.load_run("run").config.model.name == f"{hostile}:Plain"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "mine.py:Nett"], "did you mean 'Net'?"),
        (["--model", "none.py:Net"], "there is no file"),
        (["--model", "mine.py:needs"], "needs width"),
        (["--model", "mine.py:named"], "another name for name"),
        (["--model", "mine.py:nothing"], "must make a torch.nn.Module"),
        (["--model", "mine.py:Wrong"], "must return logits"),
        (["--model", "mine.py:Net", "--set", "model.chanels=2"], "did you mean 'channels'?"),
        (["--model", "mine.py:Net", "--set", "model.channels=many"], "model.channels"),
        (["--model", "mine.py:Net", "--set", "solver.rtol=1e-3"], "solver.rtol is not for"),
        (["--model", "mine.py:Net", "--backend", "julia"], "solver.backend is not for"),
        (["--dataset", "mine.py:half"], "must return"),
        (["--dataset", "mine.py:daata"], "did you mean 'data'?"),
    ],
)
def test_what_cannot_be_is_refused(file, words, said):
    assert said in refused("train", *words, *SMALL, "--out", "run")


def test_a_file_that_cannot_be_run_says_why(file):
    file.write_text("import nowhere_to_be_found")
    assert "ModuleNotFoundError" in refused("train", "--model", "mine.py:Net")


def test_names():
    assert own.is_own("a/b.py:C")
    assert own.is_own("package.module:f")
    assert not any(own.is_own(name) for name in ("homoode", "my-images.npz", "a/b.py", "b.py:1", "C:\\x.npz", None))
    with pytest.raises(hj.ConfigError, match="names no code"):
        hj.allow("homoode")
    assert ExperimentConfig().model.name == "homoode"


@pytest.fixture
def package(file, monkeypatch):
    """An installed package that brings a model, settings of a model, and a dataset."""
    folder = file.parent / "site"
    info = folder / "theirs-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[homojl.models]\ntheir-net = theirs_code:Net\ntheir-deq = theirs_settings:Settings\n"
        "[homojl.datasets]\ntheir-data = theirs_code:dataset\n"
    )
    (folder / "theirs_code.py").write_text(CODE)
    (folder / "theirs_settings.py").write_text(
        "from homojl.models.settings import DEQSettings\nclass Settings(DEQSettings):\n    summary = 'theirs'\n"
    )
    monkeypatch.syspath_prepend(folder)
    own.registered.cache_clear()
    yield folder
    own.registered.cache_clear()


def test_installed_packages_bring_models_and_datasets(package):
    called("train", "--model", "their-net", "--dataset", "their-data", *SMALL, "--out", "run")
    run = hj.load_run("run")
    assert run.config.model.name == "their-net"
    assert isinstance(run.model.network[1], hj.nn.Equilibrium)
    called("evaluate", "run")
    assert hj.load_dataset("their-data").name == "mine"
    solver = ExperimentConfig.from_dict({"model": {"name": "their-deq"}, "solver": {"algorithm": "broyden"}}).solver
    assert solver.algorithm["name"] == "broyden"
    for command, name in (("models", "their-net"), ("datasets", "their-data")):
        assert f"{name}" in CliRunner().invoke(cli, [command]).output
    with pytest.raises(hj.ConfigError, match="unknown model 'their-nett'"):
        hj.create_model("their-nett", input_shape=(1, 8, 8), n_classes=10)


def test_a_networks_layers_are_tuned(file):
    called("train", "--model", "mine.py:Net", "--dataset", "mine.py:data", *SMALL, "--out", "run", "--set",
           "data.val_fraction=0.3")  # fmt: skip
    called("tune", "run", "--algorithms", "anderson,picard", "--tolerances", "1e-1,1e-4", "--within", "50")
    assert "tune.h5" in {path.name for path in (file.parent / "run").iterdir()}
    assert "'dopri5' is not for" in refused("tune", "run", "--algorithms", "dopri5")


@pytest.mark.slow
def test_a_network_of_ones_own_in_a_comparison(file):
    words = ["compare", "--models", "cnn,mine.py:Plain", "--dataset", "mine.py:data", "--epochs", "1", "--out", "both"]
    result = CliRunner().invoke(cli, [*words, "--set", "data.val_fraction=0.1", "--set", "train.batch_size=32"])
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.output.splitlines() if line.startswith(("cnn ", "Plain "))]
    assert {row[0] for row in rows} == {"cnn", "Plain"}


def test_a_loss_of_ones_own_on_the_command_line(file):
    file.write_text(
        CODE + "\ndef doubled(logits, labels):\n    return 2 * nn.functional.cross_entropy(logits, labels)\n"
    )
    plain = ["train", "--model", "mine.py:Plain", "--dataset", "mine.py:data", *SMALL, "--epochs", "1"]
    called(*plain, "--out", "a")
    ours = "train.loss=mine.py:doubled", "optim.lr=1e-12", "train.select=lowest loss"
    called(*plain, "--out", "b", *(word for setting in ours for word in ("--set", setting)))
    a, b = (hj.load_run(name) for name in "ab")
    assert b.config.train.loss == f"{file}:doubled"
    assert 1.8 < b.metrics[0]["train_loss"] / a.metrics[0]["train_loss"] < 2.4
