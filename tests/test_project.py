"""What has to agree across the project: names for type checkers, versions, what a bug report holds."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

import homojl
from homojl_cli.info import command as info

ROOT = Path(__file__).resolve().parent.parent


def test_type_checkers_see_the_names_that_there_are():
    tree = ast.parse((ROOT / "homojl" / "__init__.py").read_text(encoding="utf-8"))
    guarded = [
        node
        for node in tree.body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    ]
    seen = {alias.asname for block in guarded for imported in block.body for alias in imported.names}
    assert seen == set(homojl.__all__) - {"__version__"}


def test_every_public_name_is_documented():
    missing = [name for name in homojl.__all__ if not (getattr(homojl, name).__doc__ or "").strip()]
    assert missing == []


def test_the_version_is_the_same_everywhere():
    julia = tomllib.loads((ROOT / "julia" / "Project.toml").read_text(encoding="utf-8"))["version"]
    (citation,) = re.findall(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert homojl.__version__ == julia == citation
    assert homojl.__version__ in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_both_packages_say_that_they_are_typed():
    assert (ROOT / "homojl" / "py.typed").is_file()
    assert (ROOT / "cli" / "homojl_cli" / "py.typed").is_file()


def test_a_bug_report_says_where_and_with_what(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    values = json.loads(CliRunner().invoke(info, ["--json"], catch_exceptions=False).stdout)
    assert values["homojl"] == homojl.__version__
    assert values["packages"].keys() >= {"torch", "numpy", "scipy"}
    assert values["variables"]["OMP_NUM_THREADS"] == "1"
    assert {"julia", "julia_packages", "julia_problem", "python", "platform"} <= values.keys()
    assert "command" not in values  # where it was typed is nobody's business
