"""One or several runs as one HTML file that needs nothing beside itself."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from homojl.files import replace_file
from homojl.results.answers import class_heading, class_table, confusion_counts, mistake_table, samples
from homojl.results.facts import MEANING, SPLITS, answer_time, facts, solver_text
from homojl.results.hdf5 import config_text
from homojl.results.page import content
from homojl.results.page.charts import COLOURS, dash_swatch, swatch
from homojl.results.page.content import ReportedRun
from homojl.version import __version__

__all__ = ["ReportedRun", "write_page"]


def write_page(path: str | Path, runs: Sequence[ReportedRun]) -> None:
    """Write runs side by side as one HTML file, whole or not at all.

    The file asks for nothing outside itself, and says so to the browser: its policy allows no request, and no script
    but the one that sorts tables. Names are escaped, whatever they are.

    Args:
        runs: at least one.

    Raises:
        DataError: the file cannot be written; one that was there is untouched.
    """
    replace_file(path, page(runs).encode("utf-8", "replace"))


def page(runs: Sequence[ReportedRun]) -> str:
    """The text of the file that `write_page` writes."""
    environment = Environment(
        loader=PackageLoader("homojl.results.page", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = (files("homojl.results.page").joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    shown = [_shown(place, run) for place, run in enumerate(runs)]
    return environment.get_template("page.html.j2").render(
        runs=shown,
        headings=[dict.fromkeys(fact.label for fact in row) for row in zip(*(r["facts"] for r in shown), strict=True)],
        subject=content.subject(run.record for run in runs),
        learning=content.charts(content.LEARNING, runs),
        solves=content.charts(content.SOLVES, runs),
        cost=content.charts(content.COST, runs),
        phases=content.phases(runs),
        configuration=content.settings([run.record.config for run in runs]),
        environment=content.settings([run.record.environment for run in runs]),
        meaning=[_emphasised(text) for text in MEANING],
        colours=COLOURS,
        dash_swatch=dash_swatch,
        data_uri=content.data_uri,
        version=__version__,
        written=datetime.now(UTC),
        style=Markup(style),
        script=Markup(script),
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{script_hash}'",
    )


def _shown(place: int, run: ReportedRun) -> dict[str, Any]:
    """What the template says of one run."""
    record, evaluation = run.record, run.record.evaluation
    shown = {
        "place": place,
        "name": run.name,
        "swatch": swatch(place),
        "subject": content.subject([record]),
        "notes": run.notes,
        "facts": facts(record),
        "numbers": content.numbers(record.metrics),
        "config": config_text(record.config),
        "answers": None,
        "samples": (),
    }
    if evaluation is not None:
        counts = confusion_counts(evaluation, len(record.class_names))
        shown |= {
            "answers": evaluation,
            "confusion": content.confusion_rows(counts, record.class_names),
            "picture": content.data_uri(content.confusion_picture(counts)),
            "n_classes": len(record.class_names),
            "class_heading": class_heading(counts),
            "classes": class_table(counts, record.class_names),
            "mistakes": mistake_table(counts, record.class_names),
            "samples": samples(evaluation, record.class_names, run.worst, run.images),
            "split": SPLITS[evaluation.split],
            "solver": solver_text(record),
            "answer_time": answer_time(evaluation),
        }
    return shown


def _emphasised(text: str) -> Markup:
    """Markdown, of which only **strong** words are supported, as HTML."""
    return Markup(re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", str(escape(text))))
