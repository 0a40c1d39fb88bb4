"""How far answers are from what was asked for: every adaptive method on every system, against SciPy at 1e-12.

    python benchmarks/accuracy.py [--tolerances 1e-3 1e-5 1e-7] [--systems vanderpol ...]

The systems of `side_by_side.py`, each from its own start in float64. Printed is the largest |y - reference| /
(1 + |reference|) at any of 50 save times over the tolerance, relative and absolute alike. A control of steps holds the
error of each step; what the system then makes of it stands beside its name: the largest factor by which an error at one
save time has grown at a later one. `steps` are those of the tightest tolerance. The last lines have the worst of all,
and of all over that factor, without Fehlberg's pair, whose estimate is up to 512 times too small.
"""

from __future__ import annotations

import argparse
import math

import torch
from peers.bars import ALLOWED_ERROR
from peers.experiments import ACCURACY_SAVES
from peers.magnification import magnification
from peers.problems import SYSTEMS, Problem, system_problem
from peers.solvers.base import MAX_STEPS
from rows import head, row

import homojl as hj
from homojl.algorithms import ODE_ALGORITHMS, AbstractErrorControlled, AbstractImplicit

METHODS = {
    name: cls
    for name, cls in ODE_ALGORITHMS.items()
    if issubclass(cls, AbstractErrorControlled) and cls.tableau is not None
}
# Below these a method takes more than ten thousand steps; Fehlberg's pair also above.
TIGHTEST = {2: 1e-5, 3: 1e-7}


@torch.no_grad()
def ratio(problem: Problem, cls: type, tolerance: float) -> tuple[float, int]:
    """The largest error over the tolerance, and how many steps were tried."""
    algorithm = cls(rtol=tolerance, atol=tolerance, max_steps=MAX_STEPS)
    ode = hj.ODEProblem(problem.torch_field(1), torch.from_numpy(problem.y0), problem.ts)
    solution = hj.solve(ode, algorithm, backend="pytorch", throw=False)
    if not solution.status.ok:
        return math.nan, 0
    reference = torch.from_numpy(problem.reference)
    error = ((solution.ys - reference).abs() / (1 + reference.abs())).max().item()
    return error / tolerance, solution.stats.n_accepted + solution.stats.n_rejected


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tolerances", type=float, nargs="+", default=[1e-3, 1e-5, 1e-7])
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    worst, within, counted = (0.0, ""), (0.0, ""), 0
    kept = kept_within = 0
    for name in args.systems:
        problem = system_problem(name, batch=1, saves=ACCURACY_SAVES, dtype="float64")
        factor = magnification(name, ACCURACY_SAVES)
        head(f"{name}, which magnifies errors {factor:.1f} times", *map("{:g}".format, args.tolerances), "steps")
        for method, cls in METHODS.items():
            cells, steps = [], 0
            for tolerance in args.tolerances:
                slow = problem.stiff and cls is hj.Fehlberg2
                limit = TIGHTEST.get(cls.order, 1e-7 if issubclass(cls, AbstractImplicit) else 0.0)
                if slow or tolerance < 0.99 * limit:
                    cells.append("")
                    continue
                found, steps = ratio(problem, cls, tolerance)
                cells.append(f"{found:.2f}")
                if cls is hj.Fehlberg2:
                    continue
                where = f"{name}, {method} at {tolerance:g}"
                worst, within = max(worst, (found, where)), max(within, (found / factor, where))
                counted += 1
                kept += found <= ALLOWED_ERROR
                kept_within += found / factor <= ALLOWED_ERROR
            row(method, *cells, steps)
    print(f"\nat most {ALLOWED_ERROR:g} times the tolerance: {kept} of {counted}; worst {worst[0]:.3g}: {worst[1]}")
    print(f"the same over the magnification: {kept_within} of {counted}; worst {within[0]:.3g}: {within[1]}")


if __name__ == "__main__":
    main()
