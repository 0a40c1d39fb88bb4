"""The gallery's pages and notebooks are those of its scripts; tests/docs/test_pages.py runs the pages."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest

from tests.docs.pages import ROOT, blocks_of

spec = importlib.util.spec_from_file_location("tools_gallery", ROOT / "tools" / "gallery.py")
gallery = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gallery)


@pytest.mark.parametrize("name", gallery.SCRIPTS)
def test_page_and_notebook_hold_the_scripts_cells(name):
    """Else: python tools/gallery.py NAME."""
    cells = gallery.cells_of(gallery.SCRIPTS[name].read_text(encoding="utf-8"))
    code = [cell.text for cell in cells if cell.code]
    page = gallery.FOLDER / f"{name}.md"
    assert [block.code.strip() for block in blocks_of(f"docs/gallery/{name}.md") if block.language == "python"] == code
    assert all(cell.text in page.read_text(encoding="utf-8") for cell in cells)
    notebook = json.loads(page.with_suffix(".ipynb").read_text(encoding="utf-8"))
    assert ["".join(cell["source"]) for cell in notebook["cells"]] == [cell.text for cell in cells]
    pictures = [output for cell in notebook["cells"] for output in cell.get("outputs", ()) if "data" in output]
    assert pictures, "every example draws something"
    assert len(list(gallery.FOLDER.glob(f"{name}-*.png"))) == len(pictures)


def test_the_index_has_every_example():
    index = (gallery.FOLDER / "index.md").read_text(encoding="utf-8")
    assert all(f"({name}.md)" in index for name in gallery.SCRIPTS)


def test_what_a_cell_prints_and_draws_is_noted():
    cells = gallery.cells_of("# %% [markdown]\n# A title\n\n# %%\nx = 2\nprint(x)\n# %%\nprint(x + 1)\n")
    gallery.run(cells)
    assert [(cell.code, cell.printed) for cell in cells] == [(False, ""), (True, "2\n"), (True, "3\n")]
    assert "```python\nx = 2\nprint(x)\n```\n\n```text\n2\n```" in gallery.page("x", cells)
