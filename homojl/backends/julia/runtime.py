"""Julia in this process: found or installed, started once when first needed, and its errors in Python's terms.

Julia and its packages live in the environment that juliapkg manages (from `juliapkg.json`, which develops the ZeroPaths
that comes along), or in one of the user's own, named by PYTHON_JULIACALL_EXE and PYTHON_JULIACALL_PROJECT together.
Nothing here downloads anything but `install`.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace as Namespace
from typing import Any

from homojl.errors import BackendUnavailable, ConfigError, JuliaCodeError
from homojl.files import parse_toml, read_text

INSTALL = "run `homojl julia install`"
MEANWHILE = "backend='pytorch' solves without Julia"

# What the algorithms need beyond ZeroPaths itself, loaded when first asked for; juliapkg.json installs them all.
PACKAGES = (
    "ZeroPaths",
    "PythonCall",
    "OrdinaryDiffEqTsit5",
    "OrdinaryDiffEqVerner",
    "OrdinaryDiffEqRosenbrock",
    "OrdinaryDiffEqSDIRK",
    "OrdinaryDiffEqBDF",
    "OrdinaryDiffEqDefault",
    "NonlinearSolve",
    "SteadyStateDiffEq",
    "LinearSolve",
    "Krylov",
    "ForwardDiff",
    "ReverseDiff",
    "Mooncake",
    "Lux",
    "CUDA",
    "DiffEqGPU",
)
OPTIONAL = ("ReverseDiff", "Mooncake", "Lux", "CUDA", "DiffEqGPU")

# Where Julia and its packages come from, and how long to wait for an answer.
SERVERS = (("pkg.julialang.org", 443), ("julialang-s3.julialang.org", 443))
PATIENCE = 5.0  # seconds


# Of one of Julia's messages.
LONGEST_MESSAGE = 1000


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
    version = _julia_version(found)
    if not version:
        return Environment(
            project=project, problem=f"PYTHON_JULIACALL_EXE names {executable}, which is not Julia: `--version` says so"
        )
    return _described(found, project, version)


@functools.cache
def _julia_version(executable: str) -> str:
    try:
        said = subprocess.run([executable, "--version"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return said.split()[2] if said.startswith("julia version ") else ""


def advice(*packages: str) -> str:
    """What to do where packages are missing, or Julia does not start: an environment of the user's own is theirs."""
    project = os.environ.get("PYTHON_JULIACALL_PROJECT")
    if not project:
        return INSTALL
    names = ", ".join(f'"{name}"' for name in packages)
    add = f"add what is missing by `julia --project={project} -e 'import Pkg; Pkg.add([{names}])'`" if packages else ""
    return (add + ", or " if add else "") + "unset PYTHON_JULIACALL_EXE and PYTHON_JULIACALL_PROJECT, which name it"


def _described(executable: str, project: str, version: str) -> Environment:
    manifests = [Path(project) / name for name in ("Manifest.toml", "JuliaManifest.toml")]
    manifest = next((m for m in manifests if m.is_file()), None)
    if manifest is None:
        return Environment(executable, version, project, problem=f"{project} has no Manifest.toml; {advice()}")
    try:
        entries = parse_toml(read_text(manifest)).get("deps", {})
        packages = {name: str(entries[name][0].get("version", "")) for name in PACKAGES if name in entries}
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        return Environment(executable, version, project, problem=f"{manifest} cannot be read: {_one_line(error)}")
    absent = [name for name in ("ZeroPaths", "PythonCall") if name not in packages]
    problem = f"the environment {project} lacks {' and '.join(absent)}; {advice(*absent)}" if absent else ""
    return Environment(executable, version, project, packages, problem)


@functools.cache
def usable() -> bool:
    """Whether Julia is running already or `start` can be expected to succeed."""
    return _Running.instance is not None or not find().problem


class _Running:
    """Julia, running: what the rest of the bridge talks to.

    Attributes:
        jl: Julia's module `Main`.
        package: ZeroPaths, the Julia package.
        bridge: its extension for Python; calls: the functions there that are called from here.
        loaded: packages that were asked for and are loaded.
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
        _name_library(environment)
        try:
            with warnings.catch_warnings(), _own_signals():
                # Both orders of importing torch and juliacall are tested.
                warnings.filterwarnings("ignore", message="torch was imported before juliacall")
                import juliacall
            self.jl = juliacall.Main
            # By Julia's C interface: juliacall would compile, in most of a second, what ZeroPaths brings compiled.
            ctypes.PyDLL(juliacall.CONFIG["libpath"]).jl_eval_string(b"import ZeroPaths")
            self.jl.seval("import ZeroPaths")  # raises what went wrong
            # Julia 1.10 loads no extension by a package of its own image until somebody has asked for that package: the
            # rules of Mooncake for NNlib would wait for LinearAlgebra.
            self.jl.seval("Base.require(ZeroPaths, :LinearAlgebra)")
        except Exception as error:
            raise BackendUnavailable(f"Julia did not start: {_one_line(error)}; {advice()}; {MEANWHILE}") from error
        self.error = juliacall.JuliaError
        self.package = self.jl.ZeroPaths
        self.bridge = self.jl.seval("Base.get_extension(ZeroPaths, :ZeroPathsPythonCallExt)")
        self.loaded: set[str] = set()
        self.calls = Namespace(**{name: getattr(self.bridge.calls, name) for name in str(self.bridge.names).split()})
        self.library = ctypes.CDLL(juliacall.CONFIG["libpath"])
        self.library.jl_get_pgcstack.restype = ctypes.c_void_p
        self.internals = ctypes.CDLL(str(self.jl.seval('import Libdl; Libdl.dlpath("libjulia-internal")')))
        self.owner = threading.main_thread().ident if started_before else threading.get_ident()
        self.owner_rests = self.owner == threading.get_ident()
        if self.owner_rests:
            # Outside of Julia this thread is no obstacle to a collection; every way into Julia ends that for a while.
            self.internals.jl_gc_safe_enter()


def _name_library(environment: Environment) -> None:
    """Tell juliacall where Julia's library is: it would start another Julia to ask."""
    folder = Path(environment.executable or "").resolve().parent
    for name in ("libjulia.so", "libjulia.dylib"):
        if environment.executable and (library := folder.parent / "lib" / name).is_file():
            os.environ.setdefault("PYTHON_JULIACALL_LIB", str(library))
            os.environ.setdefault("PYTHON_JULIACALL_BINDIR", str(folder))


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Where Julia is started: it handles the signal of an overflowing stack, and Python the others, as before.

    Without that, a function in Julia that calls itself without end would end the process.
    """
    os.environ.setdefault("PYTHON_JULIACALL_HANDLE_SIGNALS", "yes")
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    blocked, interrupt = signal.pthread_sigmask(signal.SIG_BLOCK, []), signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        if threading.current_thread() is threading.main_thread() and interrupt is not None:
            signal.signal(signal.SIGINT, interrupt)


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
        ConfigError: for an ArgumentError of ZeroPaths'.
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
    kind, message = julia.calls.describe(error.exception)
    if kind == "ArgumentError":
        return ConfigError(message.removeprefix("ArgumentError: "))
    if message == "type ODEFunction has no field f1":
        return ConfigError(
            "this method is for fields in two parts (SciML's SplitODEProblem); take one for a whole field"
        )
    if kind == "InterruptException":
        return KeyboardInterrupt()
    if len(message) > LONGEST_MESSAGE:
        message = message[:LONGEST_MESSAGE] + " ..."
    return JuliaCodeError(message)


def require(julia: _Running, *names: str) -> str:
    """The first of some packages that is installed, which is loaded if it is not yet.

    Raises:
        ConfigError: if none of them is.
    """
    for name in names:
        if name in julia.loaded:
            return name
        with calling(julia):
            if julia.calls.load(name, "") is not None:
                julia.loaded.add(name)
                return name
    raise ConfigError(f"this needs the Julia package {' or '.join(names)}; run `homojl julia add {names[0]}`")


@contextlib.contextmanager
def _visiting(julia: _Running) -> Iterator[None]:
    """Make a thread other than the one that started Julia fit to call it.

    Julia's garbage collector stops every thread that it knows of, unless it rests outside of Julia. The thread that
    started Julia may be waiting in PyTorch's autograd engine for this one; where it could not be told to rest, since
    another program started Julia on it, nothing is collected while a visitor is here.
    """
    if threading.get_ident() == julia.owner or getattr(_thread, "visiting", False):
        yield
        return
    library = julia.library
    if not library.jl_get_pgcstack():  # Julia does not know this thread yet
        library.jl_adopt_thread()
        julia.internals.jl_gc_safe_enter()  # between visits it is no obstacle to a collection
    if not julia.owner_rests:
        library.jl_gc_enable(0)
    _thread.visiting = True
    try:
        yield
    finally:
        _thread.visiting = False
        if not julia.owner_rests:
            library.jl_gc_enable(1)


def cuda_state(julia: _Running) -> str:
    """Whether solves on CUDA tensors can run, in words."""
    import torch

    if not torch.cuda.is_available():
        return "no device that PyTorch can use"
    if "CUDA" not in find().packages:
        return "not usable: CUDA.jl is not installed; run `homojl julia install --cuda`"
    require(julia, "CUDA")
    with calling(julia):
        return "usable" if julia.package.has_device() else "not usable: CUDA.jl finds no working driver"


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
            juliapkg.add("CUDA", uuid=KNOWN["CUDA"])
        juliapkg.resolve()
    except Exception as error:
        raise BackendUnavailable(f"the installation failed: {_one_line(error)}; {MEANWHILE}") from error
    usable.cache_clear()
    environment = find()
    if environment.problem:
        raise BackendUnavailable(f"the installation is incomplete: {environment.problem}; {MEANWHILE}")
    return environment


def add(package: str, say: Callable[[str], None], *, uuid: str = "") -> None:
    """Add a Julia package to homojl's environment.

    Args:
        package: its name.
        say: receives one line at a time.
        uuid: its identity in Julia's registry, where `sciml.toml` does not know it.

    Raises:
        ConfigError: if the package is not known and no UUID is given.
        BackendUnavailable: if the environment is the user's own, or the installation fails.
    """
    if os.environ.get("PYTHON_JULIACALL_PROJECT"):
        raise BackendUnavailable(f"{package} was not added, since this environment is your own; {advice(package)}")
    uuid = uuid or KNOWN.get(package, "") or _uuid(package)
    if not uuid:
        raise ConfigError(
            f"no package {package!r} is known; for one of Julia's registry give its UUID: "
            f"`homojl julia add {package} --uuid UUID`"
        )
    unreachable = _unreachable()
    if unreachable:
        raise BackendUnavailable(f"cannot reach {unreachable}, from where Julia's packages come; nothing was changed")
    say(f"adding {package}; the first time takes some minutes ...")
    try:
        import juliapkg

        juliapkg.add(package, uuid=uuid)
        juliapkg.resolve()
    except Exception as error:
        raise BackendUnavailable(f"adding {package} failed: {_one_line(error)}") from error
    say(f"{package} is installed")


# Of packages that differentiate functions in Julia, or make them, or solve on a GPU.
KNOWN = {
    "ForwardDiff": "f6369f11-7733-5829-9624-2563aa707210",
    "ReverseDiff": "37e2e3b7-166d-5795-8a7a-e32c996b4267",
    "Mooncake": "da2b9cff-9c12-43a0-ae48-6db2b0edb7d6",
    "Lux": "b2108857-7c20-44ae-9111-449ecde12c47",
    "CUDA": "052768ef-5323-5732-b1bb-66c8b64840ba",
    "DiffEqGPU": "071ae1c0-96b5-11e9-1965-c90190d839ea",
}


def _uuid(package: str) -> str:
    """A package's identity, if it is one with algorithms."""
    table = parse_toml(read_text(Path(__file__).parents[2] / "algorithms" / "sciml.toml"))
    return str(table.get(package, {}).get("uuid", ""))


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
