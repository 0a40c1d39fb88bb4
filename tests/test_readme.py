"""What the README shows runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
SHELL = re.findall(r"^homojl .*$", "\n".join(re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)), re.MULTILINE)


def test_the_first_thirty_lines_hold_the_two_commands_and_the_call():
    head = "\n".join(README.splitlines()[:30])
    for needed in ("make demo", "make test", "hj.solve(", "hj.ODEProblem(", "import homojl"):
        assert needed in head


def test_the_python_call_runs():
    result = subprocess.run([sys.executable, "-c", PYTHON[0]], capture_output=True, text=True, check=True)
    assert "SUCCESS" in result.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder in which the README's remaining blocks find `runs/mnist` and results.h5."""
    folder = tmp_path_factory.mktemp("readme")
    command = [sys.executable, "-m", "homojl_cli"]
    small = ["--set", "model.channels=4", "--set", "train.batch_size=128", "--set", "train.threads=1"]
    subprocess.run(
        [*command, "train", "--epochs", "2", "--out", "runs/mnist", *small],
        cwd=folder,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    subprocess.run(
        [*command, "export", "runs/mnist", "--out", "results.h5"], cwd=folder, check=True, stdout=subprocess.DEVNULL
    )
    return folder


def test_a_run_is_loaded_as_shown(run):
    code = (
        "import homojl as hj, torch; images = torch.zeros(2, 1, 8, 8)\n" + PYTHON[1] + "assert logits.shape == (2, 10)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=run, check=True)


def test_results_are_read_as_shown(run):
    code = PYTHON[2] + "assert len(epochs) == 2 and len(answers) == 359 and 'val_loss' in epochs"
    subprocess.run([sys.executable, "-c", code], cwd=run, check=True)


@pytest.mark.parametrize("line", SHELL)
def test_every_command_shown_is_understood(line):
    """The options exist: click accepts the line up to the work itself."""
    import click

    from homojl_cli.main import cli

    args = line.partition("#")[0].split()[1:]
    context = click.Context(cli, info_name="homojl")
    name, command, rest = cli.resolve_command(context, args)
    command.make_context(name, rest, parent=context)
