"""Every Julia file parses, also where there is no Julia to run it."""

from __future__ import annotations

from pathlib import Path

import pytest
import tree_sitter_julia
from tree_sitter import Language, Parser

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "julia").rglob("*.jl"))
PARSER = Parser(Language(tree_sitter_julia.language()))


def first_error(source: bytes) -> int | None:
    """Line of the first syntax error, or None."""
    stack = [PARSER.parse(source).root_node]
    while stack:
        node = stack.pop()
        if node.is_error or node.is_missing:
            return node.start_point[0] + 1
        stack.extend(reversed(node.children))
    return None


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_parses(path):
    assert first_error(path.read_bytes()) is None


def test_an_error_would_be_seen():
    assert len(FILES) > 5
    assert first_error(b"x = 1\nfunction f(\n") is not None
