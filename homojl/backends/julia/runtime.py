"""Julia in this process: found or installed, started once when first needed, and its errors in Python's terms.

Julia and its packages live in the environment that juliapkg manages (from `juliapkg.json`, which develops the HomoJL
that comes along), or in one of the user's own, named by PYTHON_JULIACALL_EXE and PYTHON_JULIACALL_PROJECT together.
Nothing here downloads anything but `install`.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import shutil
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from homojl.errors import BackendUnavailable, ConfigError, JuliaCodeError
from homojl.parsing import parse_toml, read_text

INSTALL = "run `homojl julia install`"
MEANWHILE = "backend='pytorch' solves without Julia"

# What the algorithms need beyond HomoJL itself, loaded when first asked for; juliapkg.json installs them all.
PACKAGES = (
    "HomoJL",
    "PythonCall",
    "DLPack",
    "DifferentialEquations",
    "OrdinaryDiffEqTsit5",
    "OrdinaryDiffEqRosenbrock",
    "OrdinaryDiffEqSDIRK",
    "OrdinaryDiffEqBDF",
    "NonlinearSolve",
    "SteadyStateDiffEq",
    "LinearSolve",
    "ForwardDiff",
    "CUDA",
)
OPTIONAL = ("CUDA", "DifferentialEquations")

# Where Julia and its packages come from, and how long to wait for an answer.
SERVERS = (("pkg.julialang.org", 443), ("julialang-s3.julialang.org", 443))
PATIENCE = 5.0  # seconds


# Julia's messages list candidates and code over many lines; this much of them goes on one.
LONGEST_MESSAGE = 400


@dataclass(frozen=True)
class Environment:
    """A Julia and its packages, as found without starting it.

    Attributes:
        executable: the julia program, or None.
        version: its version, or "".
        project: folder of the environment, or None.
        packages: versions of those of `PACKAGES` that the environment has.
        problem: why Julia cannot be used, one line; empty if it can.
    """

    executable: str | None = None
    version: str = ""
    project: str | None = None
    packages: dict[str, str] = field(default_factory=dict)
    problem: str = ""

    @property
    def missing(self) -> list[str]:
        """Packages that some algorithm needs and the environment lacks."""
        return [name for name in PACKAGES if name not in self.packages and name not in OPTIONAL]


def find() -> Environment:
    """The Julia environment that `start` would use; starts nothing, installs nothing."""
    executable = os.environ.get("PYTHON_JULIACALL_EXE")
    project = os.environ.get("PYTHON_JULIACALL_PROJECT")
    if executable or project:
        return _own_environment(executable, project)
    try:
        from juliapkg.deps import can_skip_resolve
        from juliapkg.state import STATE
    except ImportError as error:
        return Environment(problem=f"juliapkg is not installed ({error}); pip install juliacall")
    try:
        resolved = can_skip_resolve()
    except Exception as error:
        return Environment(problem=f"juliapkg: {_one_line(error)}; {INSTALL}")
    if not resolved:
        return Environment(problem=f"Julia is not installed for homojl; {INSTALL}")
    return _described(resolved["executable"], STATE["project"], str(resolved["version"]))


def _own_environment(executable: str | None, project: str | None) -> Environment:
    if not (executable and project):
        return Environment(
            executable,
            project=project,
            problem="PYTHON_JULIACALL_EXE and PYTHON_JULIACALL_PROJECT must be set together",
        )
    found = shutil.which(executable)
    if found is None:
        return Environment(project=project, problem=f"PYTHON_JULIACALL_EXE names {executable}, which is no program")
    return _described(found, project, _julia_version(found))


@functools.cache
def _julia_version(executable: str) -> str:
    try:
        said = subprocess.run([executable, "--version"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return said.strip().rpartition(" ")[2]


def _described(executable: str, project: str, version: str) -> Environment:
    manifests = [Path(project) / name for name in ("Manifest.toml", "JuliaManifest.toml")]
    manifest = next((m for m in manifests if m.is_file()), None)
    if manifest is None:
        return Environment(executable, version, project, problem=f"{project} has no Manifest.toml; {INSTALL}")
    try:
        entries = parse_toml(read_text(manifest)).get("deps", {})
        packages = {name: str(entries[name][0].get("version", "")) for name in PACKAGES if name in entries}
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        return Environment(executable, version, project, problem=f"{manifest} cannot be read: {_one_line(error)}")
    absent = [name for name in ("HomoJL", "PythonCall") if name not in packages]
    problem = f"the environment {project} lacks {' and '.join(absent)}; {INSTALL}" if absent else ""
    return Environment(executable, version, project, packages, problem)


@functools.cache
def usable() -> bool:
    """Whether Julia is running already or `start` can be expected to succeed."""
    return _Running.instance is not None or not find().problem


class _Running:
    """Julia, running: what the rest of the bridge talks to.

    Attributes:
        jl: Julia's module `Main`.
        homojl: the package HomoJL.
        bridge: its extension for Python; solves: the functions there that solve, by name.
        library, internals: Julia's C interface, in its two libraries.
        owner: the thread that started Julia.
    """

    instance: _Running | None = None

    def __init__(self) -> None:
        environment = find()
        started_before = "juliacall" in sys.modules
        if environment.problem and not started_before:
            raise BackendUnavailable(f"{environment.problem}; {MEANWHILE}")
        os.environ.setdefault("JULIA_CONDAPKG_BACKEND", "Null")  # this Python is the Python; install no other
        try:
            with warnings.catch_warnings():
                # Both orders of importing torch and juliacall are tested.
                warnings.filterwarnings("ignore", message="torch was imported before juliacall")
                import juliacall
            self.jl = juliacall.Main
            self.jl.seval("import HomoJL")
        except Exception as error:
            raise BackendUnavailable(f"Julia did not start: {_one_line(error)}; {INSTALL}; {MEANWHILE}") from error
        self.error = juliacall.JuliaError
        self.homojl = self.jl.HomoJL
        self.bridge = self.jl.seval("Base.get_extension(HomoJL, :HomoJLPythonCallExt)")
        self.solves = {name: getattr(self.bridge, name) for name in ("integrate", "fixed_point", "trace_path")}
        self.library = ctypes.CDLL(juliacall.CONFIG["libpath"])
        self.library.jl_get_pgcstack.restype = ctypes.c_void_p
        self.internals = ctypes.CDLL(str(self.jl.seval('import Libdl; Libdl.dlpath("libjulia-internal")')))
        self.owner = threading.main_thread().ident if started_before else threading.get_ident()


_starting = threading.Lock()
_solving = threading.RLock()
_thread = threading.local()


def start() -> _Running:
    """Julia, started if it is not running yet (some seconds).

    Raises:
        BackendUnavailable: if there is none, or it does not start; the message names what to run.
    """
    if _Running.instance is None:
        with _starting:
            if _Running.instance is None:
                _Running.instance = _Running()
    return _Running.instance


@contextlib.contextmanager
def calling(julia: _Running) -> Iterator[None]:
    """Where Julia is called: one thread at a time, and Julia's exceptions as homojl's.

    An exception that a Python function raised inside a solve passes through as it is.

    Raises:
        ConfigError: for Julia's ArgumentError.
        KeyboardInterrupt: for Julia's InterruptException.
        JuliaCodeError: for any other exception in Julia.
    """
    with _solving, _visiting(julia):
        try:
            yield
        except julia.error as error:
            raise translated(error, julia) from error


def translated(error: Any, julia: _Running) -> BaseException:
    """A `juliacall.JuliaError` in Python's terms."""
    kind, message = julia.bridge.describe(error.exception)
    message = " ".join(message.split())
    if len(message) > LONGEST_MESSAGE:
        message = message[:LONGEST_MESSAGE] + " ..."
    if kind == "ArgumentError":
        return ConfigError(message.removeprefix("ArgumentError: "))
    if kind == "InterruptException":
        return KeyboardInterrupt()
    return JuliaCodeError(message)


@contextlib.contextmanager
def _visiting(julia: _Running) -> Iterator[None]:
    """Make a thread other than the one that started Julia fit to call it.

    Julia's garbage collector stops every thread that it knows of. The thread that started Julia may be waiting in
    PyTorch's autograd engine for this one, and would never stop: so nothing is collected while a visitor is here.
    """
    if threading.get_ident() == julia.owner or getattr(_thread, "visiting", False):
        yield
        return
    library = julia.library
    if not library.jl_get_pgcstack():  # Julia does not know this thread yet
        library.jl_adopt_thread()
        julia.internals.jl_gc_safe_enter()  # between visits it is no obstacle to a collection
    library.jl_gc_enable(0)
    _thread.visiting = True
    try:
        yield
    finally:
        _thread.visiting = False
        library.jl_gc_enable(1)


def cuda_state(julia: _Running) -> str:
    """Whether solves on CUDA tensors can run, in words."""
    import torch

    if not torch.cuda.is_available():
        return "no device that PyTorch can use"
    if "CUDA" not in find().packages:
        return "not usable: CUDA.jl is not installed; run `homojl julia install --cuda`"
    with calling(julia):
        return "usable" if julia.homojl.has_device() else "not usable: CUDA.jl finds no working driver"


def install(say: Callable[[str], None], *, cuda: bool = False) -> Environment:
    """Install Julia and the packages where they are missing, and say what happens.

    Args:
        say: receives one line at a time.
        cuda: also CUDA.jl.

    Raises:
        BackendUnavailable: at once if Julia's servers cannot be reached and something is missing, or if an
            installation fails; what was there before stays usable.
    """
    environment = find()
    wanted = environment.missing + (["CUDA"] if cuda and "CUDA" not in environment.packages else [])
    if not environment.problem and not wanted:
        say(f"Julia {environment.version} and its packages are installed in {environment.project}")
        return environment
    if os.environ.get("PYTHON_JULIACALL_PROJECT"):
        raise BackendUnavailable(
            f"{environment.problem or 'missing in ' + str(environment.project) + ': ' + ', '.join(wanted)}; this "
            "environment is your own (PYTHON_JULIACALL_PROJECT is set): add what is missing there, or unset it"
        )
    unreachable = _unreachable()
    if unreachable:
        raise BackendUnavailable(
            f"cannot reach {unreachable}, from where Julia and its packages come; nothing was changed; {MEANWHILE}"
        )
    say("installing Julia and its packages; the first time takes several minutes ...")
    try:
        import juliapkg

        if cuda:
            juliapkg.add("CUDA", uuid="052768ef-5323-5732-b1bb-66c8b64840ba")
        juliapkg.resolve()
    except Exception as error:
        raise BackendUnavailable(f"the installation failed: {_one_line(error)}; {MEANWHILE}") from error
    usable.cache_clear()
    environment = find()
    if environment.problem:
        raise BackendUnavailable(f"the installation is incomplete: {environment.problem}; {MEANWHILE}")
    return environment


def _unreachable() -> str:
    """The first of Julia's servers that does not answer, or ""; behind a proxy the proxy is trusted to."""
    if any(os.environ.get(name) for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")):
        return ""
    for host, port in SERVERS:
        try:
            socket.create_connection((host, port), timeout=PATIENCE).close()
        except OSError:
            return host
    return ""


def _one_line(error: object) -> str:
    text: Any = str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
