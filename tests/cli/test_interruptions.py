"""What befalls a training from outside: signals, a second process, a full disk, a folder that is read-only."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from homojl.training.run import Run
from tests import warm
from tests.command import SMALL, assert_one_line_error, homojl, homojl_process
from tests.training.test_loop import assert_same_end

pytestmark = pytest.mark.slow

OFTEN = [*SMALL, "--set", "train.checkpoint_seconds=0"]


@pytest.fixture
def undisturbed(trained) -> Path:
    return trained[0]


@contextlib.contextmanager
def training(folder: Path, epochs: int = 2, python: str | None = None) -> Iterator[subprocess.Popen[str]]:
    """A training in a process of its own that has made its first step."""
    command = [
        python or warm.python(),
        "-m",
        "homojl_cli",
        "train",
        "--epochs",
        str(epochs),
        "--out",
        str(folder),
        *OFTEN,
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        while not (folder / "checkpoints" / "last.safetensors").exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.002)
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda number: number.name)
def test_a_schedulers_signal_saves_and_the_run_goes_on(undisturbed, tmp_path, number):
    with training(tmp_path / "r") as process:
        process.send_signal(number)
        stdout, stderr = process.communicate()
    assert (process.returncode, stderr) == (128 + number, "")
    assert stdout.splitlines()[-1] == f"stopped and saved; go on with: homojl train --resume {tmp_path / 'r'}"
    result = homojl("train", "--resume", tmp_path / "r")
    assert result.returncode == 0, result.stderr
    assert_same_end(Run.open(undisturbed), Run.open(tmp_path / "r"))


def test_a_second_process_gets_one_line_and_disturbs_nothing(undisturbed, tmp_path):
    with training(tmp_path / "r", epochs=1000, python=sys.executable) as process:  # whose pid is the one named
        for arguments in (["--resume", tmp_path / "r"], ["--out", tmp_path / "r", "--overwrite", *SMALL]):
            assert_one_line_error(homojl("train", *arguments), f"{tmp_path / 'r'} is in use: process {process.pid} on ")
        assert process.poll() is None
        process.kill()
    assert (tmp_path / "r" / "lock").exists()
    with training(tmp_path / "s", epochs=1) as process:
        process.kill()
    result = homojl("train", "--resume", tmp_path / "s")
    assert result.returncode == 0, "what a killed process leaves of the lock means nothing"
    assert not (tmp_path / "s" / "lock").exists()


def test_a_full_disk_is_one_line_and_the_run_goes_on(undisturbed, tmp_path):
    """The kernel refuses every write beyond 10 kB to a file, as it refuses one to a full disk."""
    limit = {
        "preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)),
        # A measurement of coverage could not write its own file either, and would say so.
        "env": {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")},
    }
    folder = tmp_path / "r"
    result = homojl_process("train", "--epochs", 2, "--out", folder, *OFTEN, **limit)
    assert_one_line_error(result, "cannot write checkpoint", "File too large")
    assert sorted(path.name for path in folder.rglob("*")) == [
        "checkpoints", "config.toml", "environment.json", "metrics.jsonl"
    ]  # fmt: skip
    result = homojl("train", "--resume", folder)
    assert result.returncode == 0, result.stderr
    assert_same_end(Run.open(undisturbed), Run.open(folder))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert_one_line_error(homojl_process("evaluate", folder, **limit), "cannot write", "File too large")
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert before == after


def unprivileged() -> list[str]:
    """What to put before a command so that permissions bind it, for root too."""
    if os.geteuid() != 0:
        return []
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner"]


@pytest.mark.needs("setpriv")
def test_a_folder_that_nobody_may_write_to(undisturbed, tmp_path):
    folder, python = tmp_path / "r", warm.python(*unprivileged())
    shutil.copytree(undisturbed, folder)
    (tmp_path / "shared").mkdir()
    for place in (tmp_path / "shared", folder, folder / "checkpoints", folder / "figures"):
        place.chmod(0o555)
    try:
        for arguments, message in [
            (["train", "--resume", folder], f"cannot write {folder / 'lock'}: Permission denied"),
            (["train", "--epochs", "1", "--out", tmp_path / "shared" / "r", *SMALL], "cannot make the run folder"),
            (["evaluate", folder], f"cannot write {folder / 'results.h5'}: Permission denied"),
        ]:
            command = [python, "-m", "homojl_cli", *map(str, arguments)]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            assert_one_line_error(result, message)
        read = (
            f"from homojl import load_run; run = load_run({str(folder)!r}); print(run.model.training, len(run.metrics))"
        )
        assert subprocess.run([python, "-c", read], capture_output=True, text=True, check=True).stdout == "False 2\n"
    finally:
        for place in (tmp_path / "shared", folder, folder / "checkpoints", folder / "figures"):
            place.chmod(0o755)
