"""Writes paths.toml: zero paths as homojl's PyTorch backend follows them, which ZeroPaths has to reproduce.

From the repository's root, in an environment with homojl: python julia/test/golden/make_paths.py
"""

from pathlib import Path

import homojl as hj
from homojl import gallery
from homojl.algorithms import AbstractPathAlgorithm
from homojl.solution import PathSolution


def case(name: str, problem: str, kind: str, algorithm: AbstractPathAlgorithm) -> str:
    example = gallery.get(problem)
    solution: PathSolution = hj.solve(example.problem(kind=kind), algorithm, backend="pytorch", throw=False)
    predictor = algorithm.predictor
    lines = [
        f"[{name}]",
        f'problem = "{problem}"',
        f'kind = "{kind.replace("-", "_")}"',
        f'algorithm = "{algorithm.name}"',
        f'predictor = "{predictor.name}"',
        f"max_corrections = {algorithm.max_corrections}",
        f"first_step = {algorithm.first_step}",
        f'linear_solver = "{algorithm.linear_solver}"',
        f"z0 = {example.z0.tolist()}",
        f'status = "{solution.status.name}"',
        f"n_rejected = {solution.stats.n_rejected}",
        f"folds = {solution.folds}",
        f"nfe = {solution.stats.nfe}",
        f"n_jvp = {solution.stats.n_jvp}",
        f"s = {solution.s.tolist()}",
        f"lambdas = {solution.lambdas.tolist()}",
        f"last_state = {solution.states[-1].tolist()}",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    arc, natural = hj.ArcLength, hj.NaturalParameter
    newton_step = natural(first_step=1.0, predictor=hj.Euler(), max_corrections=0)
    cases = [
        case("arctan", "arctan", "fixed-point", arc()),
        case("arctan_natural", "arctan", "newton", natural()),
        case("fold", "fold", "fixed-point", arc()),
        case("fold_natural", "fold", "fixed-point", natural()),
        case("cubic_returns", "cubic", "newton", arc()),
        case("himmelblau", "himmelblau", "fixed-point", arc()),
        case("himmelblau_euler", "himmelblau", "fixed-point", arc(predictor=hj.Euler())),
        case("himmelblau_rk4", "himmelblau", "fixed-point", arc(predictor=hj.RK4())),
        case("himmelblau_bosh3", "himmelblau", "fixed-point", arc(predictor=hj.Bosh3())),
        case("himmelblau_dopri5", "himmelblau", "fixed-point", arc(predictor=hj.Dopri5())),
        case("himmelblau_tsit5", "himmelblau", "fixed-point", arc(predictor=hj.Tsit5())),
        case("himmelblau_newton_step", "himmelblau", "newton", newton_step),
        case("himmelblau_krylov", "himmelblau", "fixed-point", arc(linear_solver="krylov")),
    ]
    header = "# Made by make_paths.py.\n"
    Path(__file__).with_name("paths.toml").write_text("\n".join([header, *cases]))


main()
