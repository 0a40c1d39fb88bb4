"""The command as a person runs it. What is about a process, its signals or its environment, has one of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

import homojl as hj
from homojl.results.records import METRICS
from homojl_cli.main import COMMANDS
from tests import warm
from tests.command import SMALL, assert_one_line_error, homojl, homojl_process


def test_help_lists_every_command_and_shows_examples():
    text = homojl("--help").stdout
    for name in COMMANDS:
        assert name in text
    assert "homojl train --model homoode --dataset svhn" in text


def test_alone_a_group_shows_its_help():
    for words in ((), ("julia",)):
        result = homojl(*words)
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout.startswith(f"Usage: homojl {' '.join(words)}".rstrip())
        assert "Commands:" in result.stdout


def test_equal_steps_are_named_where_there_are_no_tolerances(trained):
    folder, _ = trained
    for words, said in (((), "RK4 (one step, of 1) on "), (("--step-size", 0.5), "RK4 (steps of 0.5) on ")):
        result = homojl("evaluate", folder, "--algorithm", "rk4", *words)
        assert said in result.stdout, result.stderr
        assert "rtol" not in result.stdout


def test_predict_names_classes_with_probabilities(trained, tmp_path):
    from PIL import Image

    folder, _ = trained
    digits = hj.load_dataset("digits").x_test
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    for path, digit in zip(paths, digits, strict=False):
        Image.fromarray(digit[0].numpy()).save(path)
    result = homojl("predict", folder, *paths, "--top", 2)
    assert [line.split()[0] for line in result.stdout.splitlines()] == [str(path) for path in paths], result.stderr
    assert all(line.count("%") == 2 for line in result.stdout.splitlines())
    found = json.loads(homojl("predict", folder, paths[0], "--json").stdout)
    assert sum(found[0]["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    (best,) = hj.load_run(folder).predict(paths[0]).labels
    assert result.stdout.split()[1] == best
    assert_one_line_error(homojl("predict", folder, tmp_path / "none.png"), "no such file")


def test_runs_are_listed_by_any_metric(trained, tmp_path):
    folder, _ = trained
    import shutil

    for name, accuracy in (("low", 0.25), ("high", 0.75)):
        shutil.copytree(folder, tmp_path / "all" / name)
        file = tmp_path / "all" / name / "metrics.jsonl"
        rows = [json.loads(line) | {"val_accuracy": accuracy} for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "all" / "bad").mkdir()
    (tmp_path / "all" / "bad" / "config.toml").write_text("[model]\nname = 3\n")
    listed = homojl("runs", tmp_path / "all", "--sort", "val_accuracy").stdout.splitlines()
    assert [line.split()[0].rpartition("/")[2] for line in listed] == ["run", "high", "low", "bad"]
    assert "75.00 %" in listed[1]
    assert "2/2" in listed[1]
    lowest = homojl("runs", tmp_path / "all", "--sort", "val_accuracy", "--lowest").stdout.splitlines()
    assert lowest[1] == listed[2]
    assert "step" in homojl("runs", tmp_path / "all", "--sort", "step").stdout
    assert_one_line_error(homojl("runs", tmp_path / "all", "--sort", "val_acuracy"), "did you mean 'val_accuracy'")
    assert_one_line_error(homojl("runs", tmp_path / "none"), "no folder")


def test_a_setting_without_its_section_is_suggested():
    assert_one_line_error(homojl("train", "--set", "lr=3"), "did you mean optim.lr or initial_point.lr?")
    assert_one_line_error(homojl("train", "--set", "chanels=3"), "did you mean 'model.channels'")


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (("train", "--model", "mo"), "mondeq"),
        (("train", "--dataset", "fash"), "fashion-mnist"),
        (("train", "--preset", "deq-m"), "deq-mnist"),
        (("train", "--set", "optim.l"), "optim.lr="),
        (("compare", "--models", "deq,an"), "deq,anode"),
    ],
)
def test_shells_complete_values(typed, offered):
    from click.shell_completion import BashComplete

    from homojl_cli.main import cli

    shell = BashComplete(cli, {}, "homojl", "_HOMOJL_COMPLETE")
    assert [item.value for item in shell.get_completions(list(typed[:-1]), typed[-1])] == [offered]


@pytest.mark.slow
def test_runs_go_on_for_longer_and_start_from_others(trained, tmp_path):
    import shutil

    folder, _ = trained
    shutil.copytree(folder, tmp_path / "r")
    longer = homojl("train", "--resume", tmp_path / "r", "--epochs", 3)
    assert longer.returncode == 0, longer.stderr
    assert [row["epoch"] for row in hj.load_run(tmp_path / "r").metrics] == [1, 2, 3]
    assert_one_line_error(homojl("train", "--resume", tmp_path / "r", "--epochs", 2), "would be fewer")
    assert_one_line_error(homojl("train", "--resume", tmp_path / "r", "--seed", 2), "beside --epochs")
    onward = homojl("train", "--from", folder, "--epochs", 1, "--set", "train.threads=1", "--out", tmp_path / "s")
    assert onward.returncode == 0, onward.stderr
    run = hj.load_run(tmp_path / "s")
    assert run.config.train.start == str(folder.absolute())
    assert run.config.model.options["channels"] == 4
    assert run.metrics[0]["train_loss"] < hj.load_run(folder).metrics[0]["train_loss"]
    assert_one_line_error(homojl("train", "--from", tmp_path / "none", "--out", tmp_path / "t"), "is not a run")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name):
    result = homojl(name, "--help")
    assert result.returncode == 0
    assert result.stdout.startswith(f"Usage: homojl {name}")
    if name not in ("info", "models", "datasets"):
        assert "Example" in result.stdout


def test_train_leaves_a_complete_run(trained):
    folder, result = trained
    assert sorted(p.name for p in folder.iterdir()) == [
        "checkpoints", "config.toml", "environment.json", "figures", "metrics.jsonl", "report.md", "results.h5"
    ]  # fmt: skip
    lines = result.stdout.splitlines()
    assert "Bosh3 at 0.01" in lines[0]
    assert "pytorch backend" in lines[0]
    assert lines[1] == f"-> {folder}"
    assert lines[2].split()[:3] == ["epoch", "loss", "acc"]
    assert [line.split()[0] for line in lines[3:5]] == ["1/2", "2/2"]
    assert lines[3].endswith(" *"), "the first is the best so far"
    assert len({line.index("%") for line in lines[3:5]}) == 1, "numbers line up"
    assert lines[5].startswith("test accuracy")
    assert lines[6] == str(folder)
    assert all(len(line) <= 80 for line in lines if str(folder) not in line)
    assert "\r" not in result.stderr, "a bar has no place outside a terminal"
    assert {p.suffix for p in (folder / "figures").iterdir()} == {".png"}


def test_evaluate_agrees_with_what_training_said(trained):
    folder, result = trained
    said = result.stdout.splitlines()[5].split()[2]
    fields = dict(line.split(maxsplit=1) for line in homojl("evaluate", folder).stdout.splitlines())
    assert fields["accuracy"].split()[0] == said
    assert fields["solver"].startswith("Bosh3 (rtol 0.01, atol 0.01) on pytorch")


def test_evaluate_with_another_solver_changes_nothing_on_disk(trained):
    folder, _ = trained
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    result = homojl("evaluate", folder, "--algorithm", "tsit5", "--rtol", 1e-5, "--atol", 1e-5, "--backend", "pytorch")
    assert homojl("evaluate", folder, "--precision", "bfloat16").returncode == 0
    assert "Tsit5 (rtol 1e-05, atol 1e-05)" in result.stdout
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_export_and_plot(trained, tmp_path):
    folder, _ = trained
    out = tmp_path / "all.h5"
    assert homojl("export", folder, "--out", out, "--trajectories", 3).stdout.strip() == str(out)
    with h5py.File(out) as file:
        assert file["test/logits"].shape == (359, 10)
        assert np.mean(file["test/predictions"][:] == file["test/labels"][:]) == pytest.approx(
            file["test"].attrs["accuracy"]
        )
        assert file["trajectories/z"].shape[:2] == (3, 51)
        assert file["initial_point"].shape == (4,)
        assert file["train/val_loss"].shape == (2,)
    figures = homojl("plot", folder, "--out", tmp_path / "figures", "--format", "svg", "--format", "png").stdout.split()
    assert len(figures) >= 6
    assert {Path(path).suffix for path in figures} == {".png", ".svg"}
    assert len(homojl("plot", folder, "--out", tmp_path / "figures").stdout.split()) == len(figures) // 2
    assert all(os.path.getsize(path) > 1000 for path in figures)


@pytest.mark.slow
def test_interrupt_saves_and_resume_ends_like_the_undisturbed_run(trained, tmp_path):
    folder, _ = trained
    interrupted = tmp_path / "interrupted"
    arguments = ["train", "--epochs", "2", "--out", str(interrupted), *SMALL, "--set", "train.checkpoint_seconds=0"]
    command = [warm.python(), "-m", "homojl_cli", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (interrupted / "checkpoints" / "last.safetensors").exists():  # written after the first step
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate()
    assert process.returncode == 130, stderr
    assert stderr == ""
    assert stdout.splitlines()[-1] == f"stopped and saved; go on with: homojl train --resume {interrupted}"

    resumed = homojl("train", "--resume", interrupted)
    assert resumed.returncode == 0, resumed.stderr
    numbers = [
        [{k: v for k, v in json.loads(line).items() if METRICS[k].repeatable}
         for line in (path / "metrics.jsonl").read_text().splitlines()]
        for path in (folder, interrupted)
    ]  # fmt: skip
    assert numbers[0] == numbers[1]
    again = homojl("train", "--resume", interrupted)
    assert again.returncode == 0, "a complete run has nothing left to do, and says how it ended"
    assert "test accuracy" in again.stdout


@pytest.mark.slow
def test_quiet(tmp_path):
    result = homojl_process("train", "--epochs", 1, "--quiet", "--out", tmp_path / "r", *SMALL)
    assert (result.stdout, result.stderr) == (f"{tmp_path / 'r'}\n", "")


@pytest.mark.slow
def test_a_users_own_images(tmp_path):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 200)
    x = (rng.random((200, 9, 7, 3)) * 100 + 155 * y[:, None, None, None]).astype(np.uint8)
    np.savez(tmp_path / "mine.npz", x_train=x[:150], y_train=y[:150], x_test=x[150:], y_test=y[150:])
    result = homojl(
        "train", "--dataset", "mine.npz", "--epochs", 2, *SMALL, "--set", "train.batch_size=16", cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    folder = result.stdout.splitlines()[-1]
    assert folder.startswith("runs/homoode-mine-")
    assert float(result.stdout.splitlines()[-2].split()[2]) > 80


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["trian"], ["unknown command 'trian'; did you mean 'train'"]),
        (["train", "--modle", "x"], ["--modle"]),
        (["train", "--model", "homode"], ["did you mean 'homoode'"]),
        (["train", "--dataset", "digitz"], ["did you mean 'digits'"]),
        (["train", "--dataset", "none.npz"], ["none.npz"]),
        (["train", "--preset", "homoode-mnst"], ["did you mean 'homoode-mnist'"]),
        (["train", "--config", "none.toml"], ["cannot read none.toml"]),
        (["train", "--set", "optim.lrr=1"], ["did you mean 'lr'"]),
        (["train", "--set", "lr=1"], ["section.key=value"]),
        (
            ["train", "--set", "solver.step_size=0.1", "--set", "solver.algorithm=dopri5"],
            ["solver.step_size is not for algorithm 'dopri5'"],
        ),
        (
            ["train", "--set", "solver.rtol=0.1", "--set", "solver.algorithm=rk4"],
            ["solver.rtol is not for algorithm 'rk4'"],
        ),
        (["train", "--epochs", "0"], ["train.epochs must be at least 1"]),
        (["train", "--epochs", "many"], ["many"]),
        (["train", "--backend", "fortran"], ["fortran"]),
        (["train", "--adjoint", "forward"], ["solver.adjoint"]),
        (["train", "--device", "abacus"], ["abacus"]),
        (["train", "--resume", "none"], ["none is not a run"]),
        (["train", "--resume", "none", "--epochs", "3"], ["none is not a run"]),
        (["train", "--resume", "none", "--seed", "3"], ["beside --epochs it takes no settings"]),
        (["evaluate", "none"], ["none is not a run"]),
        (["export", "none"], ["none is not a run"]),
        (["plot", "none"], ["none is not a run"]),
        (["evaluate"], ["RUN"]),
    ],
    ids=" ".join,
)
def test_bad_input_gets_one_line_and_exit_code_2(args, words, tmp_path):
    assert_one_line_error(homojl(*args, cwd=tmp_path), *words)
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


@pytest.mark.parametrize("args", [["train", "--backend", "julia"], ["julia", "install"]], ids=" ".join)
def test_without_julia_one_line_says_what_failed_and_what_works(args, tmp_path, no_julia):
    result = homojl_process(*args, cwd=tmp_path, env=no_julia)
    assert_one_line_error(result, "no-such-julia", "backend='pytorch'" if "train" in args else "PYTHON_JULIACALL")
    assert list(tmp_path.iterdir()) == []


def test_status_without_julia_says_what_is_missing(tmp_path, no_julia):
    result = homojl_process("julia", "status", cwd=tmp_path, env=no_julia)
    assert result.returncode == 1
    assert "Julia        not found" in result.stdout
    assert "not usable: PYTHON_JULIACALL_EXE names no-such-julia" in result.stdout
    assert result.stderr == ""


@pytest.mark.slow
def test_auto_without_julia_is_pytorch_and_says_so(tmp_path, no_julia):
    result = homojl_process("train", "--epochs", 1, *SMALL, "--out", tmp_path / "r", cwd=tmp_path, env=no_julia)
    assert result.returncode == 0, result.stderr
    assert "pytorch backend" in result.stdout
    assert 'backend = "pytorch"' in (tmp_path / "r" / "config.toml").read_text()


@pytest.mark.needs("julia")
def test_status_with_julia(tmp_path):
    result = homojl_process("julia", "status", cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    for words in ("Julia        1.", "ZeroPaths", "threads      1", "CUDA ", "usable: pass --backend julia"):
        assert words in result.stdout


@pytest.mark.needs("julia")
def test_install_where_all_is_there_ends_with_the_self_test(tmp_path):
    result = homojl_process("julia", "install", cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    for words in ("are installed in", "a stiff ODE solve", "an equilibrium by Newton-Krylov", "Julia works"):
        assert words in result.stdout


@pytest.mark.slow
@pytest.mark.needs("julia")
def test_a_run_on_julia_equals_one_on_pytorch_but_for_rounding(tmp_path):
    outcomes = {}
    for backend in ("pytorch", "julia"):
        # Training magnifies rounding: two epochs are 34 steps, after which it stands at 1e-4 of the loss.
        options = ("--epochs", 2, "--backend", backend, "--out", tmp_path / backend)
        result = homojl_process("train", *SMALL, *options, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert f"{backend} backend" in result.stdout
        lines = (tmp_path / backend / "metrics.jsonl").read_text().splitlines()
        outcomes[backend] = [json.loads(line) for line in lines]
    for ours, theirs in zip(outcomes["pytorch"], outcomes["julia"], strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-3)


def test_without_a_network_the_error_says_what_to_put_where(tmp_path):
    # No network namespace is needed: a proxy that nobody listens on refuses every download at once.
    environment = os.environ | dict.fromkeys(
        ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9"
    )
    result = homojl_process(
        "train", "--dataset", "svhn", "--data-root", tmp_path / "data", cwd=tmp_path, env=environment
    )
    assert_one_line_error(result, "train_32x32.mat", "test_32x32.mat", str(tmp_path / "data"))
    assert not (tmp_path / "runs").exists()


def test_damaged_runs_are_refused_in_one_line(trained, tmp_path):
    import shutil

    folder, _ = trained
    for name, message in [
        ("checkpoints/best.safetensors", "damaged"),
        ("config.toml", "config.toml is"),
        ("results.h5", "results.h5"),
    ]:
        broken = tmp_path / name.replace("/", "-")
        shutil.copytree(folder, broken)
        content = (broken / name).read_bytes()
        (broken / name).write_bytes(content[: len(content) // 2])
        assert_one_line_error(homojl("export", broken, "--out", tmp_path / "x.h5"), message)
        assert not (tmp_path / "x.h5").exists()


def test_a_traceback_only_with_debug(tmp_path):
    assert "Traceback" not in homojl_process("evaluate", tmp_path / "none").stderr
    assert "Traceback" in homojl_process("--debug", "evaluate", tmp_path / "none").stderr


def test_models_datasets_and_info():
    assert "132,938 parameters" in homojl("models").stdout
    listed = homojl("datasets").stdout
    for name in ("digits", "mnist", "svhn", "cifar10", "cifar100"):
        assert name in listed
    assert "embedded" in listed
    info = json.loads(homojl("info", "--json").stdout)
    assert info["packages"]["torch"].startswith("2.")
    assert "torch" in homojl("info").stdout


@pytest.mark.slow
def test_every_setting_of_the_options_reaches_the_config(tmp_path):
    import tomllib

    config = tmp_path / "c.toml"
    config.write_text("[optim]\nlr = 0.5\nweight_decay = 0.25\n")
    result = homojl(
        "train", "--config", config, "--epochs", 1, "--seed", 7, "--init", "zero", "--adjoint", "gauss",
        "--device", "cpu", "--backend", "pytorch", "--out", tmp_path / "r", *SMALL, "--set", "optim.lr=0.005",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    resolved = tomllib.loads((tmp_path / "r" / "config.toml").read_text())
    assert resolved["optim"]["lr"] == 0.005
    assert resolved["optim"]["weight_decay"] == 0.25
    assert resolved["train"]["seed"] == 7
    assert resolved["model"]["init"] == "zero"
    assert resolved["solver"]["adjoint"]["name"] == "gauss"
    assert resolved["train"]["epochs"] == 1
