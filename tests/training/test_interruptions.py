"""A run whose files come from the future, whose disk is full, or which was killed before it was one."""

from __future__ import annotations

import os
import subprocess
import time

import pytest

import homojl
from homojl.environment import environment
from homojl.errors import BusyError, CheckpointError, ConfigError
from homojl.results.records import METRICS
from homojl.training import Run, train_run
from tests import warm
from tests.training.test_loop import assert_same_end

pytestmark = pytest.mark.slow


def stopped(run: Run) -> Run:
    """The run after its first line of metrics."""
    assert not train_run(run, should_stop=lambda: len(run.metrics) == 1)
    return run


def test_a_clock_that_went_back_changes_nothing(tiny, tmp_path):
    straight, run = Run.create(tmp_path / "a", tiny), stopped(Run.create(tmp_path / "b", tiny))
    tomorrow = time.time() + 86_400
    for path in (run.path, *run.path.rglob("*")):
        os.utime(path, (tomorrow, tomorrow))
    assert train_run(straight)
    assert train_run(run)
    assert_same_end(straight, run)
    assert all(m["seconds"] > 0 for m in run.metrics)


def test_no_room_for_a_line_of_metrics(tiny, tmp_path):
    run = Run.create(tmp_path / "r", tiny)
    (run.path / "metrics.jsonl").unlink()
    (run.path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match=r"cannot write .*metrics.jsonl: No space left on device"):
        run.metrics_file.append(dict.fromkeys(METRICS, 1))


def test_one_process_trains_a_run_at_a_time(tiny, tmp_path):
    run = Run.create(tmp_path / "r", tiny)
    seen = []

    def try_again() -> bool:
        with pytest.raises(BusyError, match=f"is in use: process {os.getpid()} on"):
            train_run(Run.open(run.path))
        with pytest.raises(BusyError):
            Run.create(run.path, tiny, overwrite=True)
        seen.append(run.last_checkpoint.exists())
        return True

    assert not train_run(run, should_stop=try_again)
    assert len(seen) == 1
    assert train_run(run)


def test_what_a_kill_leaves_of_making_a_run_can_be_replaced(tiny, tmp_path):
    code = (
        "import os, sys\nfrom homojl import files\nfrom homojl.training import Run\n"
        "from homojl.training.config import ExperimentConfig\n"
        "replace = os.replace\n"
        "def dying(source, target):\n"
        "    if str(target).endswith('metrics.jsonl'): os.kill(os.getpid(), 9)\n"
        "    replace(source, target)\n"
        "os.replace = dying\n"
        "Run.create(sys.argv[1], ExperimentConfig())"
    )
    killed = subprocess.run([warm.python(), "-c", code, tmp_path / "r"], check=False)
    assert killed.returncode == -9
    names = {path.name for path in (tmp_path / "r").iterdir()}
    assert any(name.startswith(".metrics.jsonl.") for name in names)
    assert "config.toml" not in names
    with pytest.raises(CheckpointError, match="is not a run"):
        Run.open(tmp_path / "r")
    with pytest.raises(ConfigError, match="is not empty"):
        Run.create(tmp_path / "r", tiny)
    run = Run.create(tmp_path / "r", tiny, overwrite=True)
    assert sorted(path.name for path in run.path.iterdir()) == [
        "checkpoints", "config.toml", "environment.json", "metrics.jsonl"
    ]  # fmt: skip


def test_half_written_files_are_cleared_away(tiny, tmp_path):
    run = stopped(Run.create(tmp_path / "r", tiny))
    for place in (".metrics.jsonl.abcd1234.tmp", "checkpoints/.last.safetensors.xyz_0000.tmp"):
        (run.path / place).write_text("half")
    assert train_run(run)
    assert not [path for path in run.path.rglob("*") if path.name.endswith(".tmp")]


@pytest.mark.needs("git")
def test_a_look_at_the_commit_leaves_gits_files_alone(tmp_path, monkeypatch):
    """`git status` would renew its index under a lock, which a kill leaves behind for the user to find."""
    (tmp_path / "homojl").mkdir()
    file = tmp_path / "homojl" / "__init__.py"
    file.write_text("")

    def git(*args: str) -> None:
        settings = ("-c", "user.name=x", "-c", "user.email=x@example.org")
        subprocess.run(["git", "-C", tmp_path, *settings, *args], check=True, capture_output=True)

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "-m", "x")
    os.utime(file, (1e9, 1e9))  # a reason to renew it
    monkeypatch.setattr(homojl, "__file__", str(file))
    index = (tmp_path / ".git" / "index").read_bytes()
    assert len(environment()["commit"]) == 40
    assert (tmp_path / ".git" / "index").read_bytes() == index
    git("status")
    assert (tmp_path / ".git" / "index").read_bytes() != index
