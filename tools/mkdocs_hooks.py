"""What the site needs beside the pages in docs/: pages from the root, formulas as MathML, no hidden blocks."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
# Page of the site -> file of the repository, which is written to be read there too.
ELSEWHERE = {
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "julia-package.md": "julia/README.md",
}


def on_files(files: Files, config: Any) -> Files:
    for page, source in ELSEWHERE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Leave out what only the tests see, and point links to where the site has their targets."""
    markdown = re.sub(r"^<!-- (?:hidden.*?-->|needs [\w ]+ -->|in a copy of the project -->)\n", "", markdown,
                      flags=re.MULTILINE | re.DOTALL)  # fmt: skip
    for target, source in ELSEWHERE.items():
        markdown = markdown.replace(f"](../{source})", f"]({target})")
    if page.file.src_uri in ELSEWHERE:
        markdown = markdown.replace("](docs/", "](")
    return markdown


def on_page_content(content: str, page: Any, config: Any, files: Files) -> str:
    """Formulas as MathML, which browsers show without a script."""
    content = re.sub(
        r'<div class="arithmatex">\\\[(.*?)\\\]</div>',
        lambda found: f'<div class="formula">{_mathml(found[1], "block")}</div>',
        content,
        flags=re.DOTALL,
    )
    return re.sub(
        r'<span class="arithmatex">\\\((.*?)\\\)</span>',
        lambda found: _mathml(found[1], "inline"),
        content,
        flags=re.DOTALL,
    )


def _mathml(formula: str, display: str) -> str:
    return convert(html.unescape(formula).strip(), display=display)
