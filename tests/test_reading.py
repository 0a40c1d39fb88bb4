"""Text from outside becomes plain values that can be shown, or is refused."""

from __future__ import annotations

import contextlib
import json
import os
import tomllib

import pytest
from hypothesis import example, given, settings, strategies as st

from homojl.files import MAX_DEPTH, parse_json, parse_toml, read_bytes, read_text
from tests.fuzzing.settings import DEEP, VALUES

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(PLAIN)
def test_json_that_was_written_is_read(values):
    assert repr(parse_json(json.dumps(values))) == repr(json.loads(json.dumps(values)))


@settings(max_examples=200)
@given(st.text(max_size=200) | st.text('[]{}",:0123456789eE+-.\\ \n', max_size=200))
@example("[" * 100_000)
@example('{"a":' * 50_000)
@example("9" * 5000)
@example('{"a": 1' + "0" * 30 + "}")
@example("[" * 100 + "]" * 100)
def test_any_text_as_json(text):
    try:
        values = parse_json(text)
    except ValueError:
        return
    assert isinstance(repr(values), str)


@settings(max_examples=200)
@given(st.text(max_size=200) | st.text("[]{}=\"'.,:0123456789aTZx#\\ \n", max_size=200))
@example("x = 0x" + "f" * 5000)
@example("[" + ".".join("a" * 300) + "]")
@example("[" + ".".join("a" * 100) + "]")
def test_any_text_as_toml(text):
    try:
        values = parse_toml(text)
    except ValueError:
        return
    assert isinstance(repr(values), str)
    assert repr(values) == repr(tomllib.loads(text))


@pytest.mark.parametrize("name", DEEP)
def test_toml_that_takes_hours_or_more_than_the_stack_is_refused(name):
    with pytest.raises(ValueError, match=r"nested|dots|TOML|line"):
        parse_toml(DEEP[name])


@pytest.mark.parametrize("value", VALUES, ids=lambda value: value[:20])
def test_toml_values_that_settings_do_not_expect(value):
    with contextlib.suppress(ValueError):
        assert isinstance(repr(parse_toml(f"x = {value}")), str)


def test_depth():
    parse_json("[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1))
    with pytest.raises(ValueError, match="nested more than"):
        parse_json("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))


def test_only_whole_regular_files_are_read(tmp_path):
    path = tmp_path / "x"
    path.write_text("12345")
    assert read_text(path) == "12345"
    assert read_bytes(path, limit=5) == b"12345"
    with pytest.raises(OSError, match="more than 4 bytes"):
        read_bytes(path, limit=4)
    with pytest.raises(OSError, match="not a regular file"):
        read_bytes("/dev/zero", limit=5)
    with pytest.raises(IsADirectoryError):
        read_text(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        read_text(tmp_path / "pipe")


def test_a_pipe_where_it_is_allowed():
    ours, theirs = os.pipe()
    os.write(theirs, b"a = 1")
    os.close(theirs)
    assert read_text(f"/dev/fd/{ours}", pipe=True) == "a = 1"
    os.close(ours)
