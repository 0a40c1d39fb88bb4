"""Commands on a run do each thing once and load only what they use, so that they begin and end soon."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SETTINGS = ["--epochs", "1", "--set", "model.channels=4", "--set", "train.batch_size=256", "--backend", "pytorch"]

# Runs the command line with its arguments, and counts. What has been loaded is looked at twice: at the first line of
# output that begins with the first argument, and at the end.
COUNTING = """
import json, sys
word, sys.argv[1:] = sys.argv[1], sys.argv[2:]
seen = {"loaded": {}, "datasets": 0, "models": 0, "checkpoints": 0}
HEAVY = ("torch", "torch._dynamo", "sympy", "torchvision", "scipy", "pandas", "matplotlib", "juliacall", "jinja2")

def look(when):
    seen["loaded"].setdefault(when, [name for name in HEAVY if name in sys.modules])

class Output:
    def write(self, text):
        if text.startswith(word):
            look("said")
    def flush(self):
        pass

def count(what, owner, name, counted=lambda: True):
    original = getattr(owner, name)
    def counting(*args, **kwargs):
        seen[what] += counted()
        return original(*args, **kwargs)
    setattr(owner, name, counting)

if "plot" not in sys.argv:
    import homojl.data.datasets, homojl.models.base, homojl.training.checkpoint, torch
    count("datasets", homojl.data.datasets.ImageDataset, "__post_init__")
    # Sizes are looked at on the meta device; that is no model that could compute.
    count("models", homojl.models.base.AbstractImplicitModel, "__init__", lambda: not torch.empty(0).is_meta)
    count("checkpoints", homojl.training.checkpoint, "_digest")
from homojl_cli.main import main
output, sys.stdout = sys.stdout, Output()
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
look("end")
print(json.dumps(seen), file=output)
"""


def counted(word: str, *args: object) -> dict:
    command = [sys.executable, "-c", COUNTING, word, *map(str, args)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("start") / "run"
    return folder, counted("test accuracy", "train", "--out", folder, *SETTINGS)


def test_training_reads_and_builds_once_and_draws_last(trained):
    folder, seen = trained
    # Checksums of two checkpoints that are written, and of the best one, read for the evaluation.
    assert seen == {"loaded": {"said": ["torch"], "end": ["torch", "matplotlib"]},
                    "datasets": 1, "models": 1, "checkpoints": 3}  # fmt: skip
    assert {path.suffix for path in (folder / "figures").iterdir()} == {".png"}


def test_a_run_that_is_resumed_reads_and_builds_once(trained):
    folder, _ = trained
    seen = counted("test accuracy", "train", "--resume", folder)
    assert (seen["datasets"], seen["models"], seen["checkpoints"]) == (1, 1, 2)


def test_evaluating_reads_and_builds_once(trained):
    folder, _ = trained
    (folder / "figures" / "solver_cost.png").unlink()
    seen = counted("accuracy", "evaluate", folder)
    assert seen == {"loaded": {"said": ["torch"], "end": ["torch", "matplotlib"]},
                    "datasets": 1, "models": 1, "checkpoints": 1}  # fmt: skip
    assert (folder / "figures" / "solver_cost.png").is_file()


def test_figures_that_still_hold_are_not_drawn_again(trained):
    folder, _ = trained
    before = {path: path.stat().st_mtime_ns for path in (folder / "figures").iterdir()}
    assert counted("accuracy", "evaluate", folder)["loaded"]["end"] == ["torch"]
    assert {path: path.stat().st_mtime_ns for path in (folder / "figures").iterdir()} == before


def test_exporting_needs_no_images(trained):
    folder, _ = trained
    seen = counted("/", "export", folder)
    assert seen == {"loaded": {"said": ["torch"], "end": ["torch"]}, "datasets": 0, "models": 1, "checkpoints": 1}
    seen = counted("/", "export", folder, "--trajectories", 2)
    assert (seen["datasets"], seen["models"], seen["checkpoints"]) == (1, 1, 1)


def test_drawing_a_run_that_was_evaluated_needs_no_torch(trained, tmp_path):
    folder, _ = trained
    assert counted("/", "plot", folder, "--out", tmp_path)["loaded"]["end"] == ["matplotlib"]


def test_reporting_reads_and_builds_once(trained, tmp_path):
    folder, _ = trained
    seen = counted("/", "report", folder, "--out", tmp_path / "report.html")
    assert seen == {"loaded": {"said": ["torch", "jinja2"], "end": ["torch", "jinja2"]},
                    "datasets": 1, "models": 1, "checkpoints": 1}  # fmt: skip
