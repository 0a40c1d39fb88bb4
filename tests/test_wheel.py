"""A wheel, installed away from the repository, is the whole product."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """An environment with the built wheel and, by path, the dependencies of this one; not this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, text=True)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    install = [sys.executable, "-m", "pip", "--python", str(folder / "venv"), "install", "--no-deps", "--no-index"]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True, text=True)
    # A path in a .pth file gives its packages but does not run its own .pth files, such as our editable install's.
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder / "venv"


def run(installed: Path, *args: str, cwd: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    result = subprocess.run(args, capture_output=True, text=True, cwd=cwd, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_package_is_the_installed_one_and_carries_everything(installed, tmp_path):
    code = """
import homojl, homojl_cli, pathlib, importlib.metadata, sys
site = pathlib.Path(homojl.__file__).parent.parent
assert str(site).startswith(sys.argv[1]), site
assert pathlib.Path(homojl_cli.__file__).parent.parent == site
assert all((site / name / "py.typed").is_file() for name in ("homojl", "homojl_cli"))
assert list(site.glob("homojl-*.dist-info/licenses/LICENSE"))
assert (site / "homojl" / "data" / "digits.txt").is_file()
from homojl.training.config import preset_names, read_preset
print(*[name for name in preset_names() if read_preset(name)])
print(*sorted(str(p.relative_to(site)) for p in (site / "homojl_julia").rglob("*") if p.is_file()))
print(importlib.metadata.version("homojl"))
"""
    out = run(installed, str(installed / "bin" / "python"), "-c", code, str(installed), cwd=tmp_path).splitlines()
    in_repository = {p.stem for p in (ROOT / "homojl" / "presets").glob("*.toml")}
    assert set(out[0].split()) == in_repository
    julia = set(out[1].split())
    tracked = subprocess.run(
        ["git", "ls-files", "julia"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    if not tracked:  # an unpacked archive has no git
        tracked = [str(p.relative_to(ROOT)) for p in (ROOT / "julia").rglob("*") if p.is_file()]
    assert {f"homojl_{name}" for name in tracked} <= julia
    assert "homojl_julia/src/ZeroPaths.jl" in julia
    assert out[2] == "0.1.0"


def test_the_command_works_from_anywhere(installed, tmp_path):
    command = str(installed / "bin" / "homojl")
    assert "train" in run(installed, command, "--help", cwd=tmp_path)
    settings = ["--set", "model.channels=4", "--set", "train.batch_size=128", "--set", "train.threads=1"]
    out = run(installed, command, "train", "--epochs", "1", "--out", "r", *settings, cwd=tmp_path)
    assert "test accuracy" in out
    assert (tmp_path / "r" / "results.h5").exists()
    run(installed, command, "report", tmp_path / "r", cwd=tmp_path)
    assert (tmp_path / "r" / "report.html").exists()
