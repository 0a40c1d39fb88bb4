"""The whole matrix of promises (tests/promises/cells.py): is every solve right, whatever is done with it, or refused?

    python benchmarks/promises.py --jobs 2                   the table of docs/promises.md; half an hour or so
    python benchmarks/promises.py --sample 1000              as many cells, drawn at random
    python benchmarks/promises.py --again                    those once more that were wrong or raw
    python benchmarks/promises.py --cell 'joint | Tsit5 | Direct | float64 | module | backward'

What has been found is in --out, one line of JSON for each cell; a run that was stopped goes on where it was. Each part
of the cells has a process of its own, which is started again where a cell ends it: that cell is "raw". So is one that
takes longer than two minutes. The page is written to --page, if given. Ends with 1 where a cell is wrong or raw.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import astuple
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from homojl.backends.julia import runtime  # noqa: E402
from tests.promises.cells import ADJOINTS, PROBLEMS, STATES, USES, Cell, Verdict, run, whole  # noqa: E402

KINDS = ("right", "refused", "wrong", "raw")
LONGEST = 120  # seconds of one cell
TITLE = {
    "joint": "ODEs, the batch as one system",
    "per-sample": "ODEs, steps of each sample's own",
    "fixed point": "Equilibria",
    "path": "Zero paths",
    "Julia": "ODEs on the Julia backend",
    "Julia fixed point": "Equilibria on the Julia backend",
}

Found = dict[Cell, Verdict]


def read(path: Path) -> tuple[Found, set[Cell]]:
    """What has been found, and which cells were begun and did not end."""
    found, begun = {}, set()
    lines = path.read_text().splitlines() if path.exists() else []
    for line in lines:
        entry = json.loads(line)
        cell = Cell(*entry["cell"])
        if "kind" in entry:
            found[cell] = Verdict(entry["kind"], entry["words"])
            begun.discard(cell)
        else:
            begun.add(cell)
    return found, begun


def parts_of(args: argparse.Namespace) -> list[Path]:
    """What each process writes."""
    return [args.out.with_suffix(f".{i}.jsonl") for i in range(args.jobs)]


def gather(out: Path) -> Found:
    """Everything that has been found, from then on in the one file."""
    found: Found = {}
    parts = sorted(out.parent.glob(f"{out.stem}.*.jsonl"))
    for path in (out, *parts):
        results, begun = read(path)
        found |= results | dict.fromkeys(begun, Verdict("raw", "the process ended"))
    keep(found, out)
    for part in parts:
        part.unlink()
    return found


def keep(found: Found, out: Path) -> None:
    out.write_text("".join(json.dumps({"cell": astuple(c), **v._asdict()}) + "\n" for c, v in found.items()))


def work(cells: Sequence[Cell], known: Path, out: Path) -> None:
    """Run the cells that are not yet known and write down what comes of each."""
    import torch

    def too_long(*_: object) -> None:
        raise TimeoutError(f"no end after {LONGEST} seconds")

    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, too_long)
    found, begun = read(out)
    found |= read(known)[0]
    with out.open("a", buffering=1) as file:
        for cell in cells:
            if cell in found:
                continue
            entry: dict[str, Any] = {"cell": astuple(cell)}
            if cell in begun:
                verdict = Verdict("raw", "the process ended")
            else:
                print(json.dumps(entry), file=file)
                signal.alarm(LONGEST)
                verdict = run(cell)
                signal.alarm(0)
            print(json.dumps({**entry, "kind": verdict.kind, "words": verdict.words}), file=file)


def chosen(args: argparse.Namespace) -> list[Cell]:
    """In an order by chance, so that what has been run at any time is a sample."""
    here = runtime.usable()
    cells = [cell for cell in whole() if here or not cell.problem.startswith("Julia")]
    if not here and args.part is None:
        print(f"the cells of the Julia backend are left out: {runtime.find().problem}", file=sys.stderr)
    return Random(args.seed).sample(cells, min(args.sample or len(cells), len(cells)))


def in_processes(args: argparse.Namespace, count: int) -> None:
    """Run all cells in `args.jobs` processes, which share them, until each has come to its end."""
    parts = parts_of(args)
    before = len(read(args.out)[0])
    command = [sys.executable, __file__, "--sample", str(args.sample), "--seed", str(args.seed)]
    command += ["--jobs", str(args.jobs), "--out", str(args.out)]

    def start(i: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*command, "--part", str(i)])

    workers, began = {i: start(i) for i in range(args.jobs)}, time.monotonic()
    while workers:
        time.sleep(2.0)
        for i, worker in list(workers.items()):
            if worker.poll() is not None:
                del workers[i]
                if worker.returncode != 0:  # the cell at work has ended it
                    workers[i] = start(i)
        done = before + sum(len(read(part)[0]) for part in parts)
        print(f"\r{done} of {count} cells, {time.monotonic() - began:.0f} s ", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


def shares(verdicts: Iterable[Verdict]) -> list[int]:
    counts = Counter(v.kind for v in verdicts)
    return [counts[kind] for kind in KINDS]


def sentence(words: str) -> str:
    """What a refusal says, without the method's name, its figures and its remedy."""
    words = re.sub(r"^(PyTorch: )?(\w+: )?", "", words)
    first = re.split(r"[;:] | \(|, got ", words, maxsplit=1)[0]
    first = re.sub(r"Adams(Bashforth|Moulton)", "Adams methods", first)
    return re.sub(r"(?<![\w\[])[-+]?\d[\d.]*(e[-+]?\d+)?", "n", first).replace("|", "/").strip()


def said(verdicts: Iterable[Verdict], kind: str, most: int) -> str:
    """The commonest sentences of a kind."""
    counts = Counter(sentence(v.words) if kind == "refused" else v.words for v in verdicts if v.kind == kind)
    return "; ".join(words for words, _ in counts.most_common(most))


def table(found: Found) -> str:
    """The tables of docs/promises.md."""
    total = shares(found.values())
    lines = [f"{len(found)} of {len(list(whole()))} cells.", ""] if len(found) < len(list(whole())) else []
    lines += ["| | cells | " + " | ".join(KINDS) + " |", "|---" * 6 + "|"]
    for problem in PROBLEMS:
        verdicts = [v for cell, v in found.items() if cell.problem == problem]
        lines.append(f"| {TITLE[problem]} | {len(verdicts)} | " + " | ".join(map(str, shares(verdicts))) + " |")
    lines.append(f"| **all** | {len(found)} | " + " | ".join(map(str, total)) + " |")
    lines += ["", "Share that is right, by adjoint and by form of state [%]:", ""]
    lines += ["| | " + " | ".join(STATES) + " |", "|---" * (1 + len(STATES)) + "|"]
    for problem in PROBLEMS:
        for adjoint in ADJOINTS[problem]:
            row = []
            for state in STATES:
                verdicts = [v for c, v in found.items() if (c.problem, c.adjoint, c.state) == (problem, adjoint, state)]
                row.append(f"{100 * shares(verdicts)[0] / len(verdicts):.0f}" if verdicts else "")
            lines.append(f"| {problem}: {adjoint} | " + " | ".join(row) + " |")
    for problem in PROBLEMS:
        lines += [
            "",
            f"## {TITLE[problem]}",
            "",
            "| what is done | right | refused | wrong | raw | what refusals say |",
        ]
        lines.append("|---" * 6 + "|")
        for name in USES:
            verdicts = [v for cell, v in found.items() if (cell.problem, cell.use) == (problem, name)]
            words = said(verdicts, "refused", 2)
            lines.append(f"| {name} | " + " | ".join(map(str, shares(verdicts))) + f" | {words} |")
    faults = [f"- `{cell}`: {v.kind}, {v.words}" for cell, v in found.items() if v.kind in ("wrong", "raw")]
    if faults:
        lines += ["", "## Faults", "", *faults]
    return "\n".join(lines) + "\n"


def write_page(page: Path, found: Found) -> None:
    """Replace what follows the page's marker."""
    before, marker, _ = page.read_text().partition("<!-- benchmarks/promises.py -->\n")
    page.write_text(f"{before}{marker}\n{table(found)}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="so many cells at random; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path, default=Path("promises.jsonl"), help="what has been found")
    parser.add_argument("--page", type=Path, help="write the tables into this page, as docs/promises.md")
    parser.add_argument("--again", action="store_true", help="forget what was wrong or raw, and run it once more")
    parser.add_argument("--report", action="store_true", help="run nothing; show what has been found")
    parser.add_argument("--cell", help="run one")
    parser.add_argument("--part", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cell:
        verdict = run(Cell(*(part.strip() for part in args.cell.split("|"))))
        print(*verdict, sep=": ")
        return verdict.kind in ("wrong", "raw")
    cells = chosen(args)
    if args.part is not None:
        work(cells[args.part :: args.jobs], args.out, parts_of(args)[args.part])
        return 0
    everything = gather(args.out)
    if args.again:
        keep({c: v for c, v in everything.items() if v.kind not in ("wrong", "raw")}, args.out)
    if not args.report:
        in_processes(args, len(cells))
        everything = gather(args.out)
    found = {cell: everything[cell] for cell in cells if cell in everything}
    if args.page:
        write_page(args.page, found)
    else:
        print(table(found))
    counts = shares(found.values())
    percent = 100 * counts[0] / max(len(found), 1)
    print(f"{len(found)} of {len(cells)} cells: {dict(zip(KINDS, counts, strict=True))}; {percent:.1f} % right")
    return any(counts[2:])


if __name__ == "__main__":
    sys.exit(main())
