"""Every ODE method of the installed OrdinaryDiffEq packages on the exact problems, by its name from Python.

    python benchmarks/sciml.py --page docs/sciml.md          all that are not in --out yet, then the page
    python benchmarks/sciml.py --method RadauIIA5 Tsit5      those, anew
    python benchmarks/sciml.py --list                        names and orders of the installed packages for sciml.toml

Each method solves the problems of tests/catalogue.py in Julia, with a field in PyTorch. One that estimates its error
does so at rtol = atol = 1e-6 (1e-4 up to order 3) and has passed where no relative error exceeds 1e-3 (1e-2); one with
equal steps takes 64 and 128 of them, and has passed where the error falls by at least 2^(order - 0.7), or is below
1e-9.
What was found is in --out, one line of JSON for each method; a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

import homojl as hj  # noqa: E402
from homojl.algorithms.sciml import packages  # noqa: E402
from homojl.backends.julia import runtime  # noqa: E402
from tests.catalogue import EXACT_ODES, ExactODE  # noqa: E402

STEPS = (64, 128)
SWITCHING = {"AutoTsit5", "AutoDP5", "AutoVern6", "AutoVern7", "AutoVern8", "AutoVern9"}

LISTING = """
function (package, uuid)
    found = Base.PkgId(Base.UUID(uuid), package)
    isnothing(Base.locate_package(found)) && return String[]
    home, core = Base.require(found), ZeroPaths.OrdinaryDiffEqCore
    lines = String[]
    for name in names(home)
        value = isdefined(home, name) ? getfield(home, name) : nothing
        (value isa Type || value isa Function) && parentmodule(value) === home || continue
        isuppercase(first(String(name))) || continue
        instance = try value() catch; nothing end
        is_method = instance isa ZeroPaths.SciMLBase.AbstractODEAlgorithm ||
            (value isa Type && value <: ZeroPaths.SciMLBase.AbstractODEAlgorithm) || startswith(String(name), "Auto")
        order = try Int(core.alg_order(instance)) catch; 0 end
        is_method && push!(lines, string(name, " = ", order))
    end
    return lines
end
"""


def method(name: str, **options: Any) -> hj.SciML:
    inner = [hj.SciML("Rosenbrock23")] if name in SWITCHING else []
    return hj.SciML(name, *inner, **options)


def error(problem: ExactODE, algorithm: hj.SciML) -> tuple[float, int]:
    ode = hj.ODEProblem(problem.f, problem.y0, (problem.t0, problem.t1))
    solution = hj.solve(ode, algorithm, backend="julia")
    exact = problem.exact(problem.t1)
    return float((solution.value - exact).norm() / exact.norm()), solution.stats.nfe


def adaptive(name: str) -> bool:
    """Whether the method estimates its error, as Julia says."""
    from homojl.backends.julia.methods import chosen

    julia = runtime.start()
    ask = julia.jl.seval("(bridge, choice) -> ZeroPaths.OrdinaryDiffEqCore.isadaptive(bridge.made(choice, true))")
    with runtime.calling(julia):
        return bool(ask(julia.bridge, chosen(method(name))))


def by_error(name: str, order: int) -> dict[str, Any]:
    """The result with steps by the method's own estimate of its error."""
    tolerance, limit = (1e-4, 1e-2) if 0 < order <= 3 else (1e-6, 1e-3)
    algorithm = method(name, rtol=tolerance, atol=tolerance)
    errors, evaluations = zip(*(error(p, algorithm) for p in EXACT_ODES), strict=True)
    return {"steps": "by error", "error": max(errors), "nfe": sum(evaluations), "passed": max(errors) <= limit}


def equal_steps(name: str, order: int) -> dict[str, Any]:
    """The result with equal steps, which passes where the errors above rounding fall with the method's order."""
    # The tolerances are those of the equations of an implicit step.
    ways = [lambda p, n=n: method(name, step_size=abs(p.t1 - p.t0) / n, rtol=1e-10, atol=1e-10) for n in STEPS]
    coarse, fine = ([error(p, way(p)) for p in EXACT_ODES] for way in ways)
    slopes = [math.log2(a / b) for (a, _), (b, _) in zip(coarse, fine, strict=True) if b > 1e-9]
    worst, observed = max(e for e, _ in fine), min(slopes, default=math.inf)
    found = {"steps": "equal", "error": worst, "nfe": sum(n for _, n in fine), "passed": observed >= (order or 1) - 0.7}
    return found if found["passed"] else {**found, "words": f"error {worst:.1e}, order {observed:.1f}"}


def examined(package: str, name: str, order: int) -> dict[str, Any]:
    """The result of one method: how it was run, its worst error, its evaluations, and whether it has passed.

    A method whose own estimate of the error stops the solve is run with equal steps.
    """
    found: dict[str, Any] = {"package": package, "method": name, "order": order, "passed": False}
    started, words = time.perf_counter(), []
    for way in (by_error, equal_steps):
        try:
            if way is by_error and not adaptive(name):
                continue
            found |= way(name, order)
            words.append(found.pop("words", f"by error {found['error']:.1e}"))
        except Exception as failure:
            words.append(str(failure).splitlines()[0].split(" (SciML's")[0][:160])
            if not isinstance(failure, hj.SolveError):
                break
        if found["passed"]:
            break
    if not found["passed"]:
        found["words"] = "; ".join(dict.fromkeys(words))
    found["seconds"] = round(time.perf_counter() - started, 1)
    return found


def page(rows: list[dict[str, Any]], path: Path) -> None:
    """Replace the table of the page."""
    passed = [r for r in rows if r["passed"]]
    known = sum(len(entry.orders) for entry in packages().values() if entry.kind == "ode")
    tried = f"{len(rows)} of the {known} methods that are known by name were tried, and {len(passed)} pass."
    lines = [
        tried,
        "",
        "| package | method | order | steps | largest error | evaluations |",
    ]
    lines += ["|---|---|---|---|---|---|"]
    for r in sorted(passed, key=lambda r: (r["package"], r["method"])):
        package, order = r["package"].removeprefix("OrdinaryDiffEq"), r["order"] or "varies"
        lines.append(f"| {package} | `{r['method']}` | {order} | {r['steps']} | {r['error']:.1e} | {r['nfe']} |")
    lines += ["", "Not passed:", "", "| package | method | why |", "|---|---|---|"]
    for r in sorted((r for r in rows if not r["passed"]), key=lambda r: (r["package"], r["method"])):
        why = r.get("words") or f"error {r['error']:.1e}"
        why = re.sub(r"[|`<>]", " ", why)
        lines.append(f"| {r['package'].removeprefix('OrdinaryDiffEq')} | `{r['method']}` | {why} |")
    text = path.read_text(encoding="utf-8")
    mark = "<!-- benchmarks/sciml.py -->\n"
    path.write_text(text[: text.index(mark)] + mark + "\n" + "\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("sciml.jsonl"))
    parser.add_argument("--page", type=Path)
    parser.add_argument("--method", nargs="*", default=[])
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    odes = {name: entry for name, entry in packages().items() if entry.kind == "ode"}
    julia = runtime.start()
    listing = julia.jl.seval(LISTING)
    if options.list:
        for name, entry in odes.items():
            print(f"[{name}.orders]", *listing(name, entry.uuid), sep="\n")
        return
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    done = {row["method"]: row for row in map(json.loads, lines)}  # the last of each
    have = set(done).difference(options.method)
    torch.set_num_threads(1)
    for package, entry in odes.items():
        for name, order in entry.orders.items():
            if name in have or (options.method and name not in options.method):
                continue
            row = examined(package, name, order)
            done[name] = row
            with options.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)
    print(Counter("passed" if row["passed"] else "not passed" for row in done.values()))
    if options.page:
        page(list(done.values()), options.page)


if __name__ == "__main__":
    main()
