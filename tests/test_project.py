"""What has to agree across the project: names for type checkers, versions, what a bug report holds."""

from __future__ import annotations

import ast
import importlib
import json
import pkgutil
import re
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

import homojl
from homojl_cli.info import command as info

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("stub", [str(p.relative_to(ROOT)) for p in sorted((ROOT / "homojl").rglob("__init__.pyi"))])
def test_every_line_of_a_list_of_names_exports_one(stub):
    """Type checkers read the list as it is, homojl.lazy reads its lines."""
    tree = ast.parse((ROOT / stub).read_text(encoding="utf-8"))
    assert all(isinstance(node, ast.ImportFrom) and len(node.names) == 1 for node in tree.body)
    names = [node.names[0] for node in tree.body]
    assert all(alias.name == alias.asname for alias in names)
    package = importlib.import_module(".".join(Path(stub).parent.parts))
    assert sorted(alias.name for alias in names) == package.__all__
    assert all(getattr(package, name) is not None for name in package.__all__)
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        _ = package.no_such_name


def test_every_public_name_is_documented():
    missing = [
        name for name in homojl.__all__ if name != "__version__" and not (getattr(homojl, name).__doc__ or "").strip()
    ]
    assert missing == []


def test_the_pages_of_the_interface_name_what_there_is():
    for page in sorted((ROOT / "docs" / "api").glob("*.md")):
        for path, options in re.findall(
            r"^::: (\S+)\n((?: +.*\n|\n)*)", page.read_text(encoding="utf-8"), re.MULTILINE
        ):
            found = pkgutil.resolve_name(path)
            listed = re.search(r"members: \[(.*?)\]", options, re.DOTALL)
            for name in re.findall(r"\w+", listed[1]) if listed else ():
                assert hasattr(found, name), f"{page.name}: {path}.{name}"


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


def _imported(path: Path, modules: dict[str, Path]) -> set[str]:
    """The modules of ours that a file imports, wherever in it: at its top, in a function, or for type checkers."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inside & modules.keys() or {node.module}
    return found & modules.keys()


def test_imports_go_round_in_no_circle():
    roots = {"homojl": ROOT, "homojl_cli": ROOT / "cli"}
    modules = {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for package, root in roots.items()
        for path in (root / package).rglob("*.py")
    }
    left = {name: _imported(path, modules) - {name} for name, path in modules.items()}
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in free:
            del left[name]
    assert {name: sorted(needs & left.keys()) for name, needs in left.items()} == {}
