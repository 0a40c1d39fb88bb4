"""A compiled solve: its source, its memory, and its calls."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch

from homojl.algorithms.tableaus import ButcherTableau
from homojl.backends.pytorch.native import EVALUATIONS, STATES
from homojl.backends.pytorch.native.build import HERE, compile_source, key_of, known
from homojl.backends.pytorch.native.entry import TRACING, Opened
from homojl.backends.pytorch.native.graph import joint_graph
from homojl.backends.pytorch.native.lower import Functions, Lowering
from homojl.backends.pytorch.native.operations import Unsupported, raise_postponed

Tensor = torch.Tensor

NO_ROOM = -1
FIRST_CHUNK = 8  # as loop.hpp has it
_REALS = {torch.float32: "float", torch.float64: "double"}


_NUMBER, _COUNT, _POINTER = ctypes.c_double, ctypes.c_int64, ctypes.c_void_p


def _fields(kind: Any, *names: str) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names]


_CONTROL = [
    *_fields(_NUMBER, "t0", "t1", "rtol", "atol", "first", "min_step", "max_step", "floor"),
    *_fields(_NUMBER, "safety", "min_factor", "max_factor", "beta1", "beta2", "beta3", "beta_older"),
    *_fields(_NUMBER, "error_order", "order"),
    *_fields(_COUNT, "max_steps", "saves"),
    *_fields(_POINTER, "ts"),
]


class _Chunk(ctypes.Structure):
    _fields_ = _fields(_POINTER, "steps", "kept")


class Job(ctypes.Structure):
    """What C++ is given, and where it stands; loop.hpp says what the fields are."""

    _fields_ = [
        *_CONTROL,
        *_fields(_COUNT, "planned", "keep"),
        *_fields(_POINTER, "plan", "y0", "inputs", "work", "ys", "fractions", "in_step"),
        *_fields(_Chunk * 40, "chunks"),
        *_fields(_COUNT, "n_chunks", "started", "evaluations"),
        *_fields(_NUMBER, "t", "h", "step", "t_next", "ratio", "h_old", "ratio_old", "ratio_older", "next_save"),
        *_fields(_COUNT, "accepted", "rejected", "next", "failed", "lands", "good", "sample", "before"),
    ]


class Lanes(ctypes.Structure):
    """The same of samples with steps of their own; lanes.hpp says what the fields are."""

    _fields_ = [
        *_CONTROL,
        *_fields(_COUNT, "samples", "inputs_count"),
        *_fields(_POINTER, "y0", "inputs", "ys", "times", "counts", "cotangents", "by_y", "by"),
        *_fields(_COUNT, "products", "evaluations"),
    ]


class Program:
    """A field's solves by one method, compiled.

    Args:
        library: with `advance` and `gradient` of loop.hpp, or of lanes.hpp where samples have steps of their own.
        facts: as noted when it was compiled.

    Attributes:
        wanted, rows: positions of the inputs that it has gradients for, and of those that have a row for each sample.
    """

    def __init__(self, library: ctypes.CDLL, facts: dict[str, Any]) -> None:
        self.advance, self.gradient = library.advance, library.gradient
        self._slots: int = facts["slots"]
        self.wanted: list[int] = facts["wanted"]
        self.rows: list[int] = facts["rows"] or []
        joint = facts["rows"] is None
        self.advance.argtypes, self.gradient.argtypes = [_COUNT] * (1 if joint else 3), [_COUNT] * (5 if joint else 4)
        sizes = [library.work_size, library.slot_size] if joint else []
        for entry in (self.advance, self.gradient, *sizes):
            entry.restype = _COUNT
        found: list[int] = [size() for size in sizes]
        self.work, self._slot = found or (0, 0)

    def grow(self, job: Job, y: Tensor) -> list[Tensor]:
        """Room for more steps: their starts and sizes (n, 2), and if kept the states (n, *y) or what `pull` needs."""
        n, k = FIRST_CHUNK << job.n_chunks, job.n_chunks
        memory = [torch.empty(n, 2, dtype=torch.float64)]
        if job.keep == STATES:
            memory.append(y.new_empty((n, *y.shape)))
        elif job.keep == EVALUATIONS:
            memory.append(y.new_empty(n * self._slots * self._slot))
        job.chunks[k], job.n_chunks = _Chunk(*(x.data_ptr() for x in memory)), k + 1
        return memory

    def regain(self, job: Job, memory: Sequence[Tensor]) -> None:
        """Have a job's room where it has come to lie since."""
        parts = len(memory) // job.n_chunks
        for k in range(job.n_chunks):
            job.chunks[k] = _Chunk(*(x.data_ptr() for x in memory[k * parts : (k + 1) * parts]))


def pointers(tensors: Sequence[Tensor]) -> Any:
    """The addresses of tensors, for C++."""
    return (_POINTER * max(len(tensors), 1))(*(x.data_ptr() for x in tensors))


def program_for(
    opened: Opened,
    tableau: ButcherTableau,
    wanted: Sequence[int],
    t: Tensor,
    y: Tensor,
    inputs: Sequence[Tensor],
    rows: Sequence[int] | None = None,
) -> Program:
    """The compiled solves of a field by a method, found again or compiled.

    Args:
        opened, tableau: field and method.
        t, y, inputs: of as many samples as there are to be lanes, where they have steps of their own.
        wanted, rows: as in `Program`.

    Raises:
        Unsupported: if the field has operations that whole solves do not have, or nothing compiles here.
    """
    place = id(tableau), tuple(wanted), rows  # its numbers take long to hash
    if place not in opened.programs:
        forms = [(tuple(x.shape), x.stride(), x.dtype) for x in (y, *inputs)]
        graph = opened.graph.print_readable(print_output=False)
        key = key_of(graph, forms, tableau, list(wanted), rows, torch.__version__)
        found = known(key)
        if found is None:
            facts = {"slots": tableau.stages - tableau.fsal, "wanted": list(wanted), "rows": rows}
            found = compile_source(key, _source(opened, tableau, t, y, inputs, wanted, rows), facts)
        opened.programs[place] = Program(*found), tableau
    program: Program = opened.programs[place][0]
    return program


def _source(
    opened: Opened,
    tableau: ButcherTableau,
    t: Tensor,
    y: Tensor,
    inputs: Sequence[Tensor],
    wanted: Sequence[int],
    rows: Sequence[int] | None,
) -> str:
    if any(inputs[i].dtype != y.dtype for i in rows or ()):
        raise Unsupported("samples' arguments of another type than the state's")
    copies = [x.detach().clone() for x in inputs]
    try:
        with torch.no_grad(), TRACING:
            graph = joint_graph(opened.field, t, y.detach().clone(), copies, wanted)
        functions = Lowering(graph, y.dtype, inputs, wanted, rows).functions()
    except Unsupported:
        raise
    except Exception as error:  # of operations in a form that was not thought of
        raise_postponed(error)
        raise Unsupported(f"{type(error).__name__}: {str(error).strip().splitlines()[:1]}") from error
    constants = _constants(tableau, y, 1 if rows is None else len(y), functions)
    if rows is not None:
        constants += [
            f"constexpr int ROWS = {len(rows)}, WANTED = {len(wanted)};",
            _array("ROW_INPUT", [*rows, 0], "int"),
            _array("ROW_SIZE", [*(inputs[i].numel() // len(inputs[i]) for i in rows), 0], "int"),
            _array("ROW_WANTED", [*(wanted.index(i) if i in wanted else -1 for i in rows), 0], "int"),
        ]
    headers = ("kernels", "control", "loop" if rows is None else "lanes")
    kernels, control, loop = ((HERE / f"{name}.hpp").read_text(encoding="utf-8") for name in headers)
    kernels = kernels.replace("#ifdef", "\n".join(constants) + "\n#ifdef", 1)
    return "\n\n".join(["// Generated by homojl.", kernels, functions.text, control, loop])


def _constants(tableau: ButcherTableau, y: Tensor, lanes: int, functions: Functions) -> list[str]:
    n, s = y.numel(), tableau.stages
    dense = tableau.dense or tuple((0.0,) for _ in range(s))
    return [
        f"typedef {_REALS[y.dtype]} R;",
        f"constexpr int N = {n}, W = {lanes}, ROW = N / W, ROOM = {-(-n // 16) * 16};",
        f"constexpr int S = {s}, POWERS = {max(map(len, dense))};",
        f"constexpr bool FSAL = {_word(tableau.fsal)}, DENSE = {_word(tableau.dense is not None)};",
        f"constexpr bool NEEDS_STATE = {_word(functions.needs_state)};",
        f"constexpr int CONSTS = {functions.consts}, SAVED = {functions.saved}, WORK = {functions.work};",
        _matrix("A", tableau.a, s),
        _array("B", tableau.b),
        _array("C", tableau.c),
        _array("E", tableau.b_error or [0.0] * s),
        _matrix("D", dense, max(map(len, dense))),
    ]


def _word(x: bool) -> str:
    return "true" if x else "false"


def _array(name: str, values: Sequence[Any], kind: str = "double") -> str:
    return f"constexpr {kind} {name}[{len(values)}] = {{{', '.join(map(repr, values))}}};"


def _matrix(name: str, rows: Sequence[Sequence[float]], columns: int) -> str:
    filled = ["{" + ", ".join(map(repr, (*row, *[0.0] * (columns - len(row))))) + "}" for row in rows]
    return f"constexpr double {name}[{len(rows)}][{columns}] = {{{', '.join(filled)}}};"
