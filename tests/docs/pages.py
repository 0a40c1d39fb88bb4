"""The code blocks of the docs, found and run: the one place where that is done.

A page's blocks run from top to bottom in one folder and, for Python, one namespace. What a page says to its reader is
all that a block needs; what a reader has and a test has not stands in the page's source, where it is not shown:

    <!-- needs network -->      before a block: why it is not run here; the options of its commands are still checked
    <!-- hidden                 before a block, and --> after it: a block that only the tests run; no step of a reader's
    <!-- in a copy of the project -->   anywhere: the page changes files of homojl; it runs in a copy, from its root

A block with a title, as ```python title="homojl/models/mine.py", is the content of that file; a diff is applied.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import click
from click.testing import CliRunner

from homojl_cli.main import cli
from tests import warm
from tests.command import without_figures

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    path.relative_to(ROOT).as_posix(): path
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
}
NEEDS = ("network", "julia", "lux", "cuda", "a clone", "a cluster", "optuna")
_BLOCK = re.compile(
    r"(?:<!-- needs (?P<needs>[\w ]+) -->\n|(?P<hidden><!-- hidden)\n)?"
    r"^```(?P<language>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)

# What makes a command small enough for a test; the options of a page come first, and these win.
TINY = ["--set", "model.channels=4", "--set", "train.threads=1", "--set", "train.batch_size=256", "--epochs", "2"]
_SMALL = {
    "train": TINY,
    "compare": ["--models", "homoode,node", "--epochs", "1", "--set", "train.batch_size=512"],
    "bench": ["--quick", "--problem", "equilibrium", "--backend", "pytorch"],
    "tune": ["--algorithms", "bosh3", "--limit", "64"],
}


@dataclass(frozen=True)
class Block:
    """One code block of a page.

    Attributes:
        page: path from the root.
        line: of its first line of code.
        language, title, code: as written.
        needs: what keeps it from being run here; empty: nothing.
        hidden: whether readers do not see it.
    """

    page: str
    line: int
    language: str
    title: str
    code: str
    needs: str
    hidden: bool

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """The lines of a shell block, without comments and continuations."""
        lines = self.code.replace("\\\n", " ").splitlines()
        return [line for line in (re.sub(r"(^|\s)#.*$", "", line).strip() for line in lines) if line]


def blocks_of(page: str) -> list[Block]:
    """All code blocks of a page, in their order."""
    text = PAGES[page].read_text(encoding="utf-8")
    return [
        Block(
            page,
            text.count("\n", 0, found.start("code")) + 1,
            found["language"],
            found["title"] or "",
            found["code"],
            found["needs"] or "",
            found["hidden"] is not None,
        )
        for found in _BLOCK.finditer(text)
    ]


def runs_in_a_copy(page: str) -> bool:
    return "<!-- in a copy of the project -->" in PAGES[page].read_text(encoding="utf-8")


def check_options(command: str) -> None:
    """Raise click's error unless a `homojl` command line is understood up to the work itself."""
    context = click.Context(cli, info_name="homojl")
    name, subcommand, rest = cli.resolve_command(context, shlex.split(command)[1:])
    if isinstance(subcommand, click.Group):
        name, subcommand, rest = subcommand.resolve_command(context, rest)
    subcommand.make_context(name, rest, parent=context)


class Session:
    """One page being followed in a folder.

    Args:
        folder: where commands run and files are made.
        made: folders by the command that made them, without its --out, shared by the pages, so that each is made once.
    """

    def __init__(self, folder: Path, made: dict[str, list[Path]]) -> None:
        self.folder, self._made = folder, made
        self.names: dict[str, Any] = {"__name__": "__main__"}

    def run(self, block: Block) -> None:
        """Do what a block says.

        Raises:
            AssertionError: a command fails; any error of a Python block is its own.
        """
        how: dict[str, Callable[[Block], None]] = {"python": self._python, "bash": self._shell}
        if block.title:
            path = self.folder / block.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.code, encoding="utf-8")
        elif block.language in how:
            how[block.language](block)

    def _python(self, block: Block) -> None:
        # Blank lines in front, so that a traceback names the line of the page.
        code = "\n" * (block.line - 1) + block.code
        exec(compile(code, str(PAGES[block.page]), "exec"), self.names)

    def _shell(self, block: Block) -> None:
        for command in block.commands:
            words = shlex.split(command)
            if words[0] == "homojl" and not set("|<>;&") & set(command):
                self._homojl(block, words[1:])
            else:
                small = shlex.join(TINY) if "homojl_cli train" in command and "--resume" not in command else ""
                subprocess_run(f"{command} {small}", self.folder, block)

    def _homojl(self, block: Block, arguments: list[str]) -> None:
        small = _SMALL.get(arguments[0], [])
        if "--resume" in arguments or "--experiment" in arguments:
            small = []
        folder, key = None, shlex.join(arguments)
        if arguments[0] == "train" and "--out" in arguments:
            # What is trained has the same numbers in any folder.
            place = arguments.index("--out")
            folder, key = arguments[place + 1], shlex.join([*arguments[:place], "--out", "", *arguments[place + 2 :]])
        for made in self._made.get(key, []):
            shutil.copytree(made, self.folder / (folder or f"runs/{made.name}"))
        if key in self._made:
            return
        before = set(self.folder.glob("runs/*"))
        # The runs of a comparison have processes of their own.
        python = warm.python() if arguments[0] == "compare" else sys.executable
        with (
            contextlib.nullcontext() if arguments[0] == "train" else without_figures(),
            mock.patch.object(sys, "executable", python),
        ):
            result = CliRunner().invoke(cli, [*arguments, *small], prog_name="homojl")
        assert result.exit_code == 0, f"{block.place}: {shlex.join(arguments)}: {result.output}{result.exception!r}"
        if arguments[0] in ("train", "compare") and "--resume" not in arguments:
            self._made[key] = sorted(set(self.folder.glob("runs/*")) - before)


class CopySession(Session):
    """A page that changes homojl itself, followed in a copy of the project by processes of their own."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, {})
        ignored = shutil.ignore_patterns("__pycache__")
        for name in ("homojl", "cli", "tests"):
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        shutil.copy(ROOT / "pyproject.toml", folder)

    def run(self, block: Block) -> None:
        if block.language == "diff":
            apply_diff(block, self.folder)
        else:
            super().run(block)

    def _python(self, block: Block) -> None:
        subprocess_run(f"python -c {shlex.quote(block.code)}", self.folder, block)

    def _homojl(self, block: Block, arguments: list[str]) -> None:
        small = ["--set", "train.threads=1", "--epochs", "1"] if arguments[0] == "train" else []
        subprocess_run(shlex.join(["homojl", *arguments, *small]), self.folder, block)


def apply_diff(block: Block, folder: Path) -> None:
    """Make the changes of a diff that `git apply` and `patch` take: each has to fit in exactly one place."""
    for name, changes in re.findall(r"^\+\+\+ b/(\S+)\n(.*?)(?=^--- |\Z)", block.code, re.MULTILINE | re.DOTALL):
        path = folder / name
        text = "\n" + path.read_text(encoding="utf-8")
        heads = re.findall(r"^@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@.*$", changes, re.MULTILINE)
        bodies = re.split(r"^@@.*\n", changes, flags=re.MULTILINE)[1:]
        assert len(heads) == len(bodies) > 0, f"{block.place}: {name} has hunks without line numbers"
        for counts, change in zip(heads, bodies, strict=True):
            lines = change.splitlines()
            removed = [line[1:] for line in lines if line[:1] in (" ", "-", "")]
            added = [line[1:] for line in lines if line[:1] in (" ", "+", "")]
            assert (len(removed), len(added)) == tuple(int(n or 1) for n in counts), f"{block.place}: a hunk of {name}"
            before, after = ("".join(f"\n{line}" for line in part) for part in (removed, added))
            places = text.count(before + "\n")
            assert places == 1, f"{block.place}: a change of {name} fits in {places} places:{before}"
            text = text.replace(before + "\n", after + "\n")
        path.write_text(text[1:], encoding="utf-8")


def subprocess_run(command: str, folder: Path, block: Block) -> None:
    """A command line as a user's shell in that folder would run it, with this Python's programs first.

    `python`, `homojl` and `torchrun` start with PyTorch loaded.
    """
    programs = Path(warm.python()).parent, Path(sys.executable).parent
    path = os.pathsep.join([*map(str, programs), os.environ.get("PATH", "")])
    python = os.pathsep.join([str(folder), str(folder / "cli")]) if (folder / "cli").is_dir() else ""
    environment = {**os.environ, "PATH": path, **({"PYTHONPATH": python} if python else {})}
    result = subprocess.run(
        ["bash", "-euc", command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, f"{block.place}: {command}\n{result.stdout[-2000:]}{result.stderr[-4000:]}"
