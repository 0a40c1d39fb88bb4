"""Julia's sources parse, also where there is no Julia to say so."""

from __future__ import annotations

from pathlib import Path

import pytest
import tree_sitter_julia
from tree_sitter import Language, Node, Parser

JULIA = Path(__file__).resolve().parent.parent / "julia"
SOURCES = sorted(path.relative_to(JULIA).as_posix() for path in JULIA.rglob("*.jl"))


def errors(source: bytes) -> list[str]:
    """The lines, and what stands there, that the grammar does not accept."""

    def within(node: Node) -> list[str]:
        if node.is_error or node.is_missing:
            return [f"line {node.start_point.row + 1}: {node.text.decode(errors='replace')[:60]!r}"]
        return [error for child in node.children if child.has_error or child.is_missing for error in within(child)]

    return within(Parser(Language(tree_sitter_julia.language())).parse(source).root_node)


@pytest.mark.parametrize("name", SOURCES)
def test_it_parses(name):
    assert errors((JULIA / name).read_bytes()) == []


def test_a_mistake_is_found():
    assert errors(b"f(x) = (x + 1") != []
    assert errors(b"function f(x)\n    x + 1\n") != []


def test_the_package_is_whole():
    """Every file is included by the package, is an extension that Project.toml names, or belongs to the tests."""
    import tomllib

    project = tomllib.loads((JULIA / "Project.toml").read_text())
    included = (JULIA / "src" / "ZeroPaths.jl").read_text()
    for name in SOURCES:
        folder, _, file = name.partition("/")
        if folder == "src" and file != "ZeroPaths.jl":
            assert f'include("{file}")' in included, name
        if folder == "ext":
            extension, _, part = file.removesuffix(".jl").partition("/")
            assert extension in project["extensions"], name
            if part not in ("", extension):
                assert f'include("{part}.jl")' in (JULIA / "ext" / extension / f"{extension}.jl").read_text(), name
