"""What the numbers of a run may depend on: versions, machine, threads, commit."""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from homojl.version import __version__

if TYPE_CHECKING:
    from types import ModuleType

PACKAGES = ("torch", "numpy", "h5py", "safetensors", "juliacall")
LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun says in the environment


def environment() -> dict[str, Any]:
    """What the numbers of a run may depend on, as this process has it; loads PyTorch."""
    import torch

    from homojl.backends.julia import runtime

    return {
        **_machine(PACKAGES),
        "julia": runtime.find().version or None,
        "threads": torch.get_num_threads(),
        "processes": process_count(),
        "cuda": torch.version.cuda,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "command": sys.argv,
    }


def installed(also: tuple[str, ...] = ()) -> dict[str, Any]:
    """What is installed here, from files alone: nothing is loaded or started.

    Args:
        also: packages to name where they are installed, beside those that homojl needs.
    """
    found = _julia_runtime().find()
    present = tuple(name for name in also if importlib.util.find_spec(name))
    return {
        **_machine((*PACKAGES, *present)),
        "cores": cores(),
        "processes": process_count(),
        "cuda": _cuda(),
        "gpu": _gpu(),
        "julia": found.version or None,
        "julia_packages": found.packages,
        "julia_problem": found.problem or None,
    }


def process_count() -> int:
    """How many processes torchrun or a scheduler has started with this one, itself included."""
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in LAUNCHED) else 1


def cores() -> int:
    """How many of the machine's cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


def fair_share(jobs: int) -> int:
    """CPU threads for each of so many processes at a time."""
    return max(1, cores() // jobs)


def _julia_runtime() -> ModuleType:
    """`homojl.backends.julia.runtime`, without `homojl.backends`, which would load PyTorch."""
    name = "homojl.backends.julia.runtime"
    if name in sys.modules:
        return sys.modules[name]
    alone = "homojl._julia_runtime"
    if alone not in sys.modules:
        path = Path(__file__).parent / "backends" / "julia" / "runtime.py"
        spec = importlib.util.spec_from_file_location(alone, path)
        assert spec is not None, path
        assert spec.loader is not None, path
        sys.modules[alone] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[alone]


def _machine(packages: tuple[str, ...]) -> dict[str, Any]:
    return {
        "homojl": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "packages": {name: _version(name) for name in packages},
    }


def _version(package: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"


def _cuda() -> str | None:
    """The CUDA that the installed PyTorch was built for."""
    import runpy

    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return None
    file = Path(spec.submodule_search_locations[0]) / "version.py"
    return runpy.run_path(str(file)).get("cuda") if file.is_file() else None


def _gpu(driver: Path = Path("/proc/driver/nvidia")) -> str | None:
    """The first NVIDIA GPU that the driver names, on Linux."""
    for file in sorted(driver.glob("gpus/*/information")):
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.startswith("Model:"):
                return line.partition(":")[2].strip()
    return None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor()


def _commit() -> str | None:
    """The commit of a source checkout, with "+changes" if it is not clean; None for an installed package."""
    folder = Path(__file__).parent.parent
    if not (folder / ".git").exists():
        return None

    def git(*args: str) -> str:
        # Without the lock that `git status` takes to refresh its index: a kill would leave it behind.
        command = ["git", "--no-optional-locks", "-C", str(folder), *args]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
