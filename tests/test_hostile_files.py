"""Hostile files of every kind, and sound ones damaged at random: a result or one line, and nothing that they ask for.

`benchmarks/fuzz.py` does the same with thousands, in processes of their own, and holds time and memory against limits.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from homojl.errors import HomoJLError
from tests.fuzzing.hostile import HOSTILE
from tests.fuzzing.mutate import spoil_at_random
from tests.fuzzing.sound import KINDS

RANDOM = 8  # damages of each kind
_EXECUTED = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "pickle.find_class")
_events: list[str] | None = None


def _hook(event: str, _args: object) -> None:
    if _events is not None and event in _EXECUTED:
        _events.append(event)


sys.addaudithook(_hook)


def assert_harmless(kind: str, folder: Path, spoil: Callable[[Path, Path], object]) -> None:
    """A spoiled file is read, or refused in one line, and executes nothing."""
    global _events
    path, canary = folder / KINDS[kind].name, folder / "canary"
    KINDS[kind].write(path)
    spoil(path, canary)
    _events = events = []
    try:
        KINDS[kind].read(path)
    except HomoJLError as error:
        message = str(error)
        assert message
        assert message.isprintable()
    finally:
        _events = None
    assert not canary.exists()
    assert not events


@pytest.mark.parametrize("kind", KINDS)
def test_the_sound_ones_are_read(kind, tmp_path):
    path = tmp_path / KINDS[kind].name
    KINDS[kind].write(path)
    KINDS[kind].read(path)


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, cases in HOSTILE.items() for name in cases if kind != "assignment"]
)
def test_hostile(kind, name, tmp_path):
    assert_harmless(kind, tmp_path, HOSTILE[kind][name])


def test_hostile_assignments(tmp_path):
    for spoil in HOSTILE["assignment"].values():
        assert_harmless("assignment", tmp_path, spoil)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_at_random(kind, tmp_path):
    for number in range(RANDOM):
        (folder := tmp_path / str(number)).mkdir()
        rng = Random(f"test {kind} {number}")
        assert_harmless(kind, folder, lambda path, _, rng=rng: spoil_at_random(kind, path, rng, [rng.randbytes(500)]))
