"""Finding Julia, and what is said where it is not: nothing here starts it."""

from __future__ import annotations

import pytest

import homojl as hj
from homojl.backends.julia import runtime

MANIFEST = """
julia_version = "1.10.8"
[[deps.ZeroPaths]]
version = "0.1.0"
[[deps.PythonCall]]
version = "0.9.37"
[[deps.NonlinearSolve]]
version = "4.27.0"
"""


@pytest.fixture
def named(monkeypatch, tmp_path):
    """An environment of the user's own: a program that says its version, and a project."""
    program = tmp_path / "julia"
    program.write_text("#!/bin/sh\necho julia version 1.10.8\n")
    program.chmod(0o755)
    (tmp_path / "Manifest.toml").write_text(MANIFEST)
    monkeypatch.setenv("PYTHON_JULIACALL_EXE", str(program))
    monkeypatch.setenv("PYTHON_JULIACALL_PROJECT", str(tmp_path))
    return tmp_path


def test_an_environment_is_described_without_starting_it(named):
    found = runtime.find()
    assert (found.problem, found.version, found.project) == ("", "1.10.8", str(named))
    assert found.packages == {"ZeroPaths": "0.1.0", "PythonCall": "0.9.37", "NonlinearSolve": "4.27.0"}
    assert "OrdinaryDiffEqBDF" in found.missing
    assert "CUDA" not in found.missing


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda m, path: m.delenv("PYTHON_JULIACALL_PROJECT"), "must be set together"),
        (lambda m, path: m.setenv("PYTHON_JULIACALL_EXE", "no-such-julia"), "names no-such-julia, which is no program"),
        (lambda m, path: m.setenv("PYTHON_JULIACALL_EXE", "true"), "names true, which is not Julia"),
        (lambda m, path: (path / "Manifest.toml").unlink(), "has no Manifest.toml; unset PYTHON_JULIACALL_EXE"),
        (lambda m, path: (path / "Manifest.toml").write_text("[["), "cannot be read"),
        (
            lambda m, path: (path / "Manifest.toml").write_text(MANIFEST.replace("deps.ZeroPaths", "deps.Other")),
            "lacks ZeroPaths; add what is missing by `julia --project=",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(named, monkeypatch, damage, message):
    damage(monkeypatch, named)
    problem = runtime.find().problem
    assert message in problem
    assert "\n" not in problem


def test_an_environment_of_the_users_own_is_never_changed(named):
    with pytest.raises(hj.BackendUnavailable, match=r"missing .*OrdinaryDiffEqBDF.*your own"):
        runtime.install(pytest.fail)


class TestOffline:
    """Julia's servers cannot be reached: one line, at once, and nothing is touched."""

    @pytest.fixture(autouse=True)
    def _offline(self, monkeypatch):
        import juliapkg

        for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "PYTHON_JULIACALL_PROJECT"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv("PYTHON_JULIACALL_EXE", raising=False)
        monkeypatch.setattr(runtime, "SERVERS", (("127.0.0.1", 9),))  # where nobody listens
        nothing = runtime.Environment(problem="Julia is not installed for homojl; run `homojl julia install`")
        monkeypatch.setattr(runtime, "find", lambda: nothing)
        monkeypatch.setattr(juliapkg, "resolve", lambda *args, **kwargs: pytest.fail("nothing may be resolved"))

    def test_install_says_what_failed_and_what_works(self):
        said = []
        with pytest.raises(hj.BackendUnavailable) as caught:
            runtime.install(said.append)
        message = str(caught.value)
        assert "cannot reach 127.0.0.1" in message
        assert "nothing was changed" in message
        assert "backend='pytorch' solves without Julia" in message
        assert "\n" not in message
        assert said == []

    def test_a_failed_resolution_is_one_line_too(self, monkeypatch):
        import juliapkg

        def fail(*args, **kwargs):
            raise RuntimeError("no version of Julia\nand a long story")

        monkeypatch.setattr(juliapkg, "resolve", fail)
        monkeypatch.setattr(runtime, "SERVERS", ())
        with pytest.raises(hj.BackendUnavailable, match="the installation failed: no version of Julia; backend="):
            runtime.install(lambda line: None)


class TestAdd:
    def test_an_environment_of_the_users_own_is_left_alone(self, named):
        with pytest.raises(hj.BackendUnavailable, match=r"OrdinaryDiffEqFIRK was not added.*Pkg.add\(\[\"OrdinaryDiff"):
            runtime.add("OrdinaryDiffEqFIRK", pytest.fail)

    def test_a_known_package_needs_no_uuid(self, monkeypatch):
        import juliapkg

        for name in ("PYTHON_JULIACALL_PROJECT", "PYTHON_JULIACALL_EXE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(runtime, "SERVERS", ())
        added, said = [], []
        monkeypatch.setattr(juliapkg, "add", lambda name, uuid: added.append((name, uuid)))
        monkeypatch.setattr(juliapkg, "resolve", lambda: None)
        runtime.add("OrdinaryDiffEqFIRK", said.append)
        runtime.add("Mooncake", said.append)
        runtime.add("DiffEqGPU", said.append)
        assert added == [
            ("OrdinaryDiffEqFIRK", "5960d6e9-dd7a-4743-88e7-cf307b64f125"),
            ("Mooncake", "da2b9cff-9c12-43a0-ae48-6db2b0edb7d6"),
            ("DiffEqGPU", "071ae1c0-96b5-11e9-1965-c90190d839ea"),
        ]
        with pytest.raises(hj.ConfigError, match=r"no package 'Unheard' is known.*--uuid UUID"):
            runtime.add("Unheard", said.append)


def test_the_status_of_a_program_that_is_not_julia(named, monkeypatch):
    from click.testing import CliRunner

    from homojl_cli.julia import command

    monkeypatch.setenv("PYTHON_JULIACALL_EXE", "true")
    result = CliRunner().invoke(command, ["status"])
    assert result.exit_code == 1
    assert "names true, which is not Julia" in result.output
    assert "not installed" not in result.output
