"""The HomoODE paper's Figures 2, 5, 6 and 7 on equations and models of our own, PNG and SVG.

    python benchmarks/paper_figures.py --out figures [--learned RUN --zero RUN]

Figures 2, 6 and 7: the paper's test equation is not known to us. Ours is the gallery's "ripples",
z - 1 + 0.8 sin(5 (z - 1)) = 0, whose slope changes its sign on the way to its one root. Figure 2 starts on both sides
of the root, at distances from 1e-4 to 10, and counts evaluations of the residual by arc length at the default
tolerances; for comparison the iterations of Newton's method, where it arrives within 100.

Figure 5 compares two runs that differ in the shared initial point, for example

    homojl train --model homoode --init learned --epochs 20 --out runs/learned
    homojl train --model homoode --init zero --epochs 20 --out runs/zero

From Ding et al. (2023), arXiv 2310.09583.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

import homojl as hj
from homojl import gallery
from homojl.results.paths import points_of
from homojl.results.style import BLUE, GREEN, PALETTE, VERMILLION, new_figure, write_figures

RIPPLES = gallery.get("ripples")
ROOT = RIPPLES.roots[0].item()


def path_from(start: float, **options) -> hj.PathSolution:
    problem = RIPPLES.problem(torch.tensor([start], dtype=torch.float64))
    return hj.solve(problem, hj.ArcLength(**options), backend="pytorch")


def newton_iterations(start: float) -> float:
    """How many iterations Newton's method takes, NaN where it does not arrive within 100."""
    z = torch.tensor([start], dtype=torch.float64)
    for iteration in range(101):
        r = RIPPLES.r(z)
        if r.abs().item() <= 1e-8 + 1e-6 * z.abs().item():
            return iteration
        z = z - r / torch.func.jvp(RIPPLES.r, (z,), (torch.ones_like(z),))[1]
    return float("nan")


def figure_2():
    distances = np.logspace(-4, 1, 26)
    above = [path_from(ROOT + d).stats for d in distances]
    below = [path_from(ROOT - d).stats for d in distances]
    newton = [newton_iterations(ROOT + d) for d in distances]
    with new_figure("A start near the solution saves evaluations only up to a point", (9, 5)) as figure:
        axes = figure.subplots()
        axes.plot(distances, [s.nfe for s in above], "o-", color=BLUE, label="evaluations, from above")
        axes.plot(distances, [s.nfe for s in below], "s--", color=VERMILLION, label="evaluations, from below")
        axes.plot(distances, newton, "x", color="black", label="Newton's iterations, from above, where it arrives")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("distance of the start from the solution")
        axes.set_ylabel("evaluations of r")
        axes.set_title("ripples, fixed-point homotopy by arc length")
        axes.legend(loc="upper left")
    for d, a, b, n in zip(distances, above, below, newton, strict=True):
        print(f"figure 2: distance {d:8.1e}  evaluations {a.nfe:4d} {b.nfe:4d}  Newton's iterations {n:g}")
    return figure


def figure_5(learned: hj.training.run.Run, zero: hj.training.run.Run):
    curves = {"learned": (learned, BLUE, "o"), "zero": (zero, VERMILLION, "s")}
    config = learned.config
    title = f"A learned initial point: {config.model.name} on {Path(config.data.dataset).stem}"
    with new_figure(title, (11, 4.6)) as figure:
        work, accuracy = figure.subplots(1, 2)
        for name, (run, colour, marker) in curves.items():
            rows = run.metrics
            epochs = [row["epoch"] for row in rows]
            look = {"color": colour, "marker": marker, "label": f"{name} initial point"}
            work.plot(epochs, [row["nfe_val"] for row in rows], **look)
            accuracy.plot(epochs, [100 * row["val_accuracy"] for row in rows], **look)
            last = rows[-1]
            print(f"figure 5: {name}: {last['nfe_val']:.1f} evaluations, {100 * last['val_accuracy']:.2f} %")
        work.set_ylabel("evaluations per forward pass, validation")
        work.set_ylim(bottom=0)
        accuracy.set_ylabel("validation accuracy [%]")
        for axes in (work, accuracy):
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.set_xlabel("epoch")
            axes.legend(loc="lower right")
    return figure


def figure_6():
    path = path_from(RIPPLES.z0.item(), max_step=0.02)
    points, z = points_of(path), torch.linspace(0, 4.5, 400, dtype=torch.float64)
    with new_figure("ripples: λ deforms an easy equation into a hard one, and its zero moves along", (12, 5)) as figure:
        from matplotlib import colormaps

        curves, zeros = figure.subplots(1, 2)
        for lam in (0.0, 0.25, 0.5, 0.75, 1.0):
            h = lam * RIPPLES.r(z) + (1 - lam) * (z - RIPPLES.z0)
            colour = colormaps["viridis"](0.9 * (1 - lam))
            curves.plot(z, h, color=colour, label=f"λ = {lam:g}")
            for crossing in np.flatnonzero(np.diff(np.sign(h.numpy()))):
                curves.plot(z[crossing], 0, "o", color=colour, zorder=3)
                zeros.plot(lam, z[crossing], "o", color=colour, zorder=3)
        curves.axhline(0, color="black", linewidth=1)
        curves.set_xlabel("z")
        curves.set_ylabel("H(z, λ)")
        curves.legend()
        zeros.plot(points[:, 1], points[:, 0], color=GREEN, zorder=2)
        zeros.annotate("start", (0, points[0, 0]), xytext=(10, 2), textcoords="offset points")
        zeros.annotate("root", (1, points[-1, 0]), xytext=(-4, 10), textcoords="offset points", ha="right")
        zeros.set_xlabel("λ")
        zeros.set_ylabel("z where H(z, λ) = 0")
        zeros.set_title(f"the path turns back {path.folds} times")
    return figure


def figure_7():
    velocities = {"v = 1": 1.0, "v = 5": 5.0, "v = 10": 10.0, "v = 1 + s": lambda s: 1 + s}
    paths = {name: path_from(RIPPLES.z0.item(), max_step=0.05, velocity=v) for name, v in velocities.items()}
    with new_figure("ripples: one path, followed at different velocities", (12, 5)) as figure:
        plane, table = figure.subplots(1, 2)
        for i, (name, path) in enumerate(paths.items()):
            points = points_of(path)
            plane.plot(points[:, 1], points[:, 0], color=PALETTE[i], linewidth=11 - 3 * i, label=name)
            table.plot(path.s, points[:, 1], color=PALETTE[i], label=name)
            table.plot(path.s[-1:], points[-1:, 1], "o", color=PALETTE[i])
        plane.set_xlabel("λ")
        plane.set_ylabel("z")
        plane.set_title("where it leads")
        plane.legend()
        table.set_xlabel("s")
        table.set_ylabel("λ")
        table.set_title("when it is where")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("figures"))
    parser.add_argument("--learned", help="a run with a learned initial point, for Figure 5")
    parser.add_argument("--zero", help="the same run with the initial point kept at zero")
    args = parser.parse_args()
    draw = {"figure-2": figure_2, "figure-6": figure_6, "figure-7": figure_7}
    if args.learned and args.zero:
        learned, zero = hj.load_run(args.learned), hj.load_run(args.zero)
        draw["figure-5"] = lambda: figure_5(learned, zero)
    for file in write_figures(draw, args.out):
        print(file)


if __name__ == "__main__":
    main()
