"""The gallery: from each script of docs/gallery a page of the site and a notebook, with what it prints and draws.

    python tools/gallery.py [NAME ...]

A script is Python in cells, which begin with `# %%`, or `# %% [markdown]` where their comments are text. Its cells are
run in their order; what a cell prints, and the figures that it leaves, follow it. A cell that begins with
`# %% needs lux` is run by the tests of the docs only where that is there.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "gallery"
SCRIPTS = {path.stem: path for path in sorted(FOLDER.glob("*.py"))}


@dataclass
class Cell:
    """One cell of a script, with its output.

    Attributes:
        text: markdown, or code.
        code: whether it is code.
        needs: what it takes to run it beyond homojl, as the tests of the docs call it; empty: nothing.
        printed: what it printed.
        pictures: its figures, as PNG.
    """

    text: str
    code: bool
    needs: str = ""
    printed: str = ""
    pictures: list[bytes] = field(default_factory=list)


def cells_of(script: str) -> list[Cell]:
    """The cells of a script's text."""
    cells = []
    for part in re.split(r"^# %%", script, flags=re.MULTILINE)[1:]:
        kind, _, body = part.partition("\n")
        if kind.strip() == "[markdown]":
            cells.append(Cell(re.sub(r"^# ?", "", body, flags=re.MULTILINE).strip(), code=False))
        else:
            cells.append(Cell(body.strip(), code=True, needs=kind.strip().removeprefix("needs ")))
    return cells


def run(cells: list[Cell]) -> None:
    """Run the code of the cells in one namespace and note what comes of them."""
    from matplotlib import pyplot as plt

    names = {"__name__": "__main__"}
    for cell in cells:
        if not cell.code:
            continue
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(cell.text, "cell", "exec"), names)
        cell.printed = said.getvalue()
        for number in plt.get_fignums():
            file = io.BytesIO()
            plt.figure(number).savefig(file, dpi=100, metadata={"Software": None})
            cell.pictures.append(file.getvalue())
        plt.close("all")


def page(name: str, cells: list[Cell]) -> str:
    """The page of the site; its pictures lie beside it."""
    parts, pictures = [], 0
    for cell in cells:
        needs = f"<!-- needs {cell.needs} -->\n" if cell.needs else ""
        parts.append(f"{needs}```python\n{cell.text}\n```" if cell.code else cell.text)
        if cell.printed:
            parts.append(f"```text\n{cell.printed.rstrip()}\n```")
        for _ in cell.pictures:
            parts.append(f"![What the code above draws]({name}-{pictures}.png)")
            pictures += 1
    parts.append(f"The same as [a notebook]({name}.ipynb) and as [a script]({name}.py).")
    return "\n\n".join(parts) + "\n"


def notebook(cells: list[Cell]) -> str:
    """The notebook, in Jupyter's format 4.5."""
    written = []
    for i, cell in enumerate(cells):
        entry = {"id": f"cell-{i}", "metadata": {}, "source": cell.text.splitlines(keepends=True)}
        if not cell.code:
            written.append({"cell_type": "markdown", **entry})
            continue
        outputs = []
        if cell.printed:
            outputs.append({"output_type": "stream", "name": "stdout", "text": cell.printed.splitlines(keepends=True)})
        for picture in cell.pictures:
            data = {"image/png": base64.b64encode(picture).decode()}
            outputs.append({"output_type": "display_data", "data": data, "metadata": {}})
        written.append({"cell_type": "code", "execution_count": None, "outputs": outputs, **entry})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {"cells": written, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1) + "\n"


def main() -> None:
    os.environ.setdefault("MPLBACKEND", "agg")
    for name in sys.argv[1:] or SCRIPTS:
        cells = cells_of(SCRIPTS[name].read_text(encoding="utf-8"))
        run(cells)
        for i, picture in enumerate(picture for cell in cells for picture in cell.pictures):
            (FOLDER / f"{name}-{i}.png").write_bytes(picture)
        (FOLDER / f"{name}.md").write_text(page(name, cells), encoding="utf-8")
        (FOLDER / f"{name}.ipynb").write_text(notebook(cells), encoding="utf-8")
        print(name)


if __name__ == "__main__":
    main()
