"""Compiling generated C++, finding again what was compiled, and running it in threads."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import homojl
from homojl.backends.pytorch.native.operations import Unsupported

HERE = Path(__file__).parent
_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd", "-w")


def folder() -> Path:
    """Where compiled solves are kept: where PyTorch keeps what it compiles if told so, else in the user's cache."""
    inductor = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if inductor:
        return Path(inductor) / "homojl"
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "homojl" / "solves"


@functools.cache
def compiler() -> tuple[str, ...]:
    """The C++ compiler with the flags for this machine.

    Raises:
        Unsupported: if there is none.
    """
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        path = shutil.which(name) if name else None
        if path is not None:
            return path, *_FLAGS, _native(path)
    raise Unsupported("no C++ compiler was found; install g++, or set CXX")


def _native(path: str) -> str:
    for flag in ("-march=native", "-mcpu=native"):
        tried = subprocess.run([path, flag, "-x", "c++", "-E", os.devnull], capture_output=True, check=False)
        if tried.returncode == 0:
            return flag
    return "-O3"


@functools.cache
def _surroundings() -> str:
    """What decides what is compiled, beside the field: the sources of this folder, the compiler and the processor."""
    digest = hashlib.sha256(homojl.__version__.encode())
    for path in sorted(HERE.iterdir()):
        if path.suffix in (".py", ".hpp"):
            digest.update(path.read_bytes())
    digest.update(" ".join(compiler()).encode())
    digest.update(_processor().encode())
    return digest.hexdigest()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return "".join(sorted({line for line in lines if line.startswith(("model name", "flags"))}))


def key_of(*parts: object) -> str:
    """The name of what is compiled from such parts."""
    return hashlib.sha256("\0".join([_surroundings(), *map(repr, parts)]).encode()).hexdigest()[:32]


def known(key: str) -> tuple[ctypes.CDLL, dict[str, Any]] | None:
    """What was compiled under a name, with the facts noted beside it; None: nothing, or it cannot be read."""
    path = folder() / f"{key}.so"
    try:
        facts: dict[str, Any] = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        return ctypes.CDLL(str(path)), facts
    except (OSError, ValueError):
        return None


def compile_source(key: str, text: str, facts: dict[str, Any]) -> tuple[ctypes.CDLL, dict[str, Any]]:
    """Compile a source and keep it under a name; two processes may do so at a time.

    Raises:
        Unsupported: if it cannot be compiled or kept.
    """
    target = folder() / f"{key}.so"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            source, made = Path(scratch) / "solve.cpp", Path(scratch) / "solve.so"
            source.write_text(text, encoding="utf-8")
            ran = subprocess.run(
                [*compiler(), str(source), "-o", str(made)], capture_output=True, text=True, check=False
            )
            if ran.returncode != 0:
                raise Unsupported(f"code that {compiler()[0]} does not take: {ran.stderr.strip().splitlines()[:1]}")
            notes = Path(scratch) / "solve.json"
            notes.write_text(json.dumps(facts), encoding="utf-8")
            os.replace(made, target)
            os.replace(notes, target.with_suffix(".json"))
        return ctypes.CDLL(str(target)), facts
    except OSError as error:
        raise Unsupported(f"a compiled solve could not be kept: {error}") from error


def in_parts(count: int, parts: int, work: Callable[[int, int], object]) -> None:
    """Work on ranges of so many rows, (from, to), each in a thread of its own."""
    bounds = [count * i // parts for i in range(parts + 1)]
    if parts == 1:
        work(0, count)
        return
    with ThreadPoolExecutor(parts) as pool:
        list(pool.map(work, bounds[:-1], bounds[1:]))
