"""What a comparison leaves behind: comparison.h5, report.md and figures."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from homojl.comparison.figures import draw_comparison
from homojl.comparison.hdf5 import write_comparison
from homojl.comparison.record import Comparison
from homojl.comparison.report import write_comparison_report


def publish(comparison: Comparison, *, command: Sequence[str] = ()) -> None:
    """Write the HDF5 file, the report and, where matplotlib is installed, the figures into the comparison's folder."""
    folder = comparison.plan.folder
    write_comparison(folder / "comparison.h5", comparison)
    figures = draw_comparison(comparison, folder / "figures") if find_spec("matplotlib") else []
    write_comparison_report(folder / "report.md", comparison, figures, command)
