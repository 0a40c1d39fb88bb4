"""Every page is followed from top to bottom, as a newcomer would."""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import torch

from tests.conftest import AVAILABLE
from tests.docs.pages import NEEDS, PAGES, ROOT, CopySession, Session, blocks_of, check_options, runs_in_a_copy
from tests.test_julia_sources import errors

ALL = [block for page in PAGES for block in blocks_of(page)]


def _is_run(block) -> bool:
    return not block.needs or (block.needs in AVAILABLE and AVAILABLE[block.needs]())


@pytest.fixture(scope="module")
def made() -> dict[str, list[Path]]:
    return {}


@pytest.fixture
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("page", dict.fromkeys(b.page for b in ALL if b.language in ("python", "bash") and not b.needs))
def test_a_page_holds_what_it_says(page, made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    session = CopySession(tmp_path) if runs_in_a_copy(page) else Session(tmp_path, made)
    for block in blocks_of(page):
        if _is_run(block):
            session.run(block)


@pytest.mark.parametrize("block", [b for b in ALL if b.needs], ids=lambda block: block.place)
def test_a_block_that_needs_more(block):
    """Its commands have the options that they are given; then it is skipped, loudly, where that is not here."""
    assert block.needs in NEEDS, f"{block.place}: needs {block.needs!r}; known: {NEEDS}"
    for command in block.commands if block.language == "bash" else []:
        if command.startswith("homojl "):
            check_options(command)
    if not _is_run(block):
        if block.needs in os.environ.get("HOMOJL_REQUIRE", "").split(","):
            pytest.fail(f"HOMOJL_REQUIRE names {block.needs}, which is not here")
        pytest.skip(f"needs {block.needs}, which is not here")


def _outputs(block) -> list[str]:
    """What the commands of a block are told to make."""
    commands = [shlex.split(line) for line in block.commands] if block.language == "bash" else []
    return [words[words.index("--out") + 1] for words in commands if "--out" in words]


@pytest.mark.parametrize("block", [b for b in ALL if b.hidden], ids=lambda block: block.place)
def test_what_is_hidden_is_no_step(block):
    """Checks, and commands in the place of shown ones that need more: a reader has every name and file without them."""
    if block.language == "python":
        assert all(isinstance(statement, ast.Assert | ast.Expr) for statement in ast.parse(block.code).body)
        return
    shown = {name for other in ALL if other.page == block.page and not other.hidden for name in _outputs(other)}
    assert set(_outputs(block)) <= shown
    assert all(command.startswith("ruff ") or "--out" in command for command in block.commands)


def test_no_folder_of_a_run_is_made_twice():
    """All pages can be followed in one folder."""
    made = [name for block in ALL if not block.hidden for name in _outputs(block) if name.startswith("runs/")]
    assert len(made) > 10
    assert sorted(made) == sorted(set(made))


@pytest.mark.needs("git")
@pytest.mark.parametrize("block", [b for b in ALL if b.language == "diff"], ids=lambda block: block.place)
def test_a_patch_applies(block, tmp_path):
    """As it stands, by the program that a reader has, to the files as they are or as earlier patches left them."""
    page = [other for other in ALL if other.page == block.page and other.language == "diff"]
    names = {name for other in page for name in re.findall(r"^\+\+\+ b/(\S+)$", other.code, re.MULTILINE)}
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    for other in page[: page.index(block) + 1]:
        subprocess.run(["git", "apply", "-"], cwd=tmp_path, input=other.code, text=True, check=True)


@pytest.mark.parametrize("block", [b for b in ALL if b.language == "julia"], ids=lambda block: block.place)
def test_julia_parses(block):
    assert errors(block.code.encode()) == []


@pytest.mark.parametrize("block", [b for b in ALL if b.language == "toml"], ids=lambda block: block.place)
def test_toml_parses(block):
    assert tomllib.loads(block.code)


def test_the_readme_begins_with_a_layer_then_the_two_commands_and_the_call():
    lines = PAGES["README.md"].read_text(encoding="utf-8").splitlines()
    assert "import homojl as hj" in "\n".join(lines[:15])
    assert "hj.nn.Equilibrium(" in "\n".join(lines[:30])
    for needed in ("make demo", "make test", "hj.solve(", "hj.ODEProblem("):
        assert needed in "\n".join(lines[:65])


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", PAGES[page].read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    missing = [t for t in targets if t[0] != "#" and not (PAGES[page].parent / t.partition("#")[0]).exists()]
    # The site has these from elsewhere: tools/mkdocs_hooks.py.
    assert [t for t in missing if t not in ("../julia-package.md", "contributing.md")] == []
