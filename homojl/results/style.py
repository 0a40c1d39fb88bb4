"""The style of every figure, and how figures are written. matplotlib is optional.

Figures are drawn without pyplot, so that nothing outside them changes.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from homojl.errors import ConfigError
from homojl.files import make_folder, replace_file
from homojl.names import FIGURE_FORMATS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Okabe & Ito (2008): colours that people with any colour vision tell apart; without yellow, pale on white.
BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
PALETTE = (BLUE, VERMILLION, GREEN, PURPLE, "#E69F00", "#56B4E9", "#000000")
DASHES: tuple[Literal["-", "--", ":", "-."], ...] = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

_STYLE: dict[Any, Any] = {
    "figure.dpi": 160,
    "savefig.dpi": "figure",
    "font.size": 12,
    "axes.titlesize": 12,
    "figure.titlesize": 15,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E5E5E5",
    "lines.linewidth": 2,
    "lines.markersize": 6,
    "legend.frameon": False,
    "figure.constrained_layout.w_pad": 0.1,
    "figure.constrained_layout.h_pad": 0.08,
    "text.parse_math": False,  # a class may be called $x$
    "svg.fonttype": "none",  # text stays text: searchable, editable
    "svg.hashsalt": "homojl",  # the same figure gives the same file
}
_OPTIONS: dict[str, dict[str, Any]] = {  # of FIGURE_FORMATS
    "png": {"pil_kwargs": {"compress_level": 3}},  # the usual 6: a fifth smaller, half as fast
    "svg": {"metadata": {"Date": None}},
    "pdf": {"metadata": {"CreationDate": None}},
}


def write_figures(
    draw: Mapping[str, Callable[[], Figure]], folder: str | Path, formats: Sequence[str] = ("png", "svg")
) -> list[Path]:
    """Draw figures, one after the other, each file whole or not at all.

    Args:
        draw: by the stem of the file.
        folder: made where it does not exist.
        formats: of `FIGURE_FORMATS`.

    Returns:
        The files, a figure's formats in the order given.

    Raises:
        ConfigError: matplotlib is missing, or an unknown format.
        DataError: a file cannot be written.
    """
    for name in formats:
        if name not in FIGURE_FORMATS:
            raise ConfigError(f"unknown figure format {name!r}; known: {', '.join(FIGURE_FORMATS)}")
    folder = Path(folder)
    make_folder(folder)
    paths = []
    for stem, drawn in draw.items():
        figure = drawn()
        with style():
            _lay_out(figure)
        for name in formats:
            buffer = io.BytesIO()
            with style():
                figure.savefig(buffer, format=name, **_OPTIONS[name])
            paths.append(folder / f"{stem}.{name}")
            replace_file(paths[-1], buffer.getvalue())
    return paths


@contextlib.contextmanager
def style() -> Iterator[None]:
    """matplotlib's own defaults and `_STYLE`, whatever the user's matplotlibrc says; put back afterwards."""
    try:
        import matplotlib
    except ImportError as error:
        raise ConfigError("figures need matplotlib, which is not installed: pip install 'homojl[plots]'") from error
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


@contextlib.contextmanager
def new_figure(title: str, size: tuple[float, float]) -> Iterator[Figure]:
    """An empty figure with a title, to be drawn in the common style.

    Args:
        size: width and height, inches.
    """
    with style():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        made = Figure(layout="constrained", figsize=size)
        FigureCanvasAgg(made)
        made.suptitle(title)
        yield made


def look(place: int, **others: Any) -> dict[str, Any]:
    """Colour, marker and dash of a line by its place: each repeats after 7 lines, together with another dash.

    Args:
        others: further properties of the line, or others for these.
    """
    return {
        "color": PALETTE[place % len(PALETTE)],
        "marker": MARKERS[place % len(MARKERS)],
        "linestyle": DASHES[place // len(PALETTE) % len(DASHES)],
    } | others


def legend_beside(figure: Figure, axes: Axes) -> None:
    """One legend for all panels, beside them."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center")


def percent_axis(axis: Axis) -> None:
    """Fractions in per cent."""
    axis.set_major_formatter(lambda value, _: f"{100 * value:.4g}")


def _lay_out(figure: Figure) -> None:
    """Compute the layout once; otherwise `savefig` draws the whole figure one more time to compute it."""
    engine = figure.get_layout_engine()
    assert engine is not None, figure
    engine.execute(figure)
    figure.set_layout_engine("none")


def log_axis(axis: Axis) -> None:
    """Plain numbers at the ticks of a logarithmic axis, since `_STYLE` parses no mathematics.

    At powers of ten, and where there are few of them also at 2 and 5 times those; the axis begins at a tick, so that
    its lower end can be read. Call it when all is drawn.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    subs = (1.0, 2.0, 5.0) if high < 100 * low else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs))
    if 0 < low < high:
        decade = 10.0 ** math.floor(math.log10(low))
        axis.set_view_interval(max(sub * decade for sub in subs if sub * decade <= low * (1 + 1e-9)), high, ignore=True)
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())
