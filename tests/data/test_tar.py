"""Files from tar archives: those that the tarfile module finds, and nothing that an archive could do beside."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given, settings, strategies as st

from homojl.data.guards import RefusedError
from homojl.data.tar import tar_files
from tests.fuzzing.datasets import tar_of

NAMES = st.sampled_from(["a", "./a", "b", "d/a", "d/" * 60 + "a", "ä", "x" * 120])
MEMBERS = st.lists(st.tuples(NAMES, st.binary(max_size=1500), st.just({})), max_size=5)
FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)


@settings(deadline=None)
@given(MEMBERS, st.sampled_from(FORMATS))
def test_the_same_as_tarfile(members, form):
    members = [member for member in members if form != tarfile.USTAR_FORMAT or "x" * 120 not in member[0]]
    content = tar_of(*members, form=form)
    expected = {}
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for member in archive:
            if member.name.removeprefix("./") in ("a", "b", "d/a"):
                expected[member.name.removeprefix("./")] = archive.extractfile(member).read()
    assert tar_files(io.BytesIO(content), {name: name for name in ("a", "b", "d/a")}) == expected


def test_a_long_path_of_the_ustar_form():
    path = "d/" * 60 + "a"
    content = tar_of((path, b"deep", {}), form=tarfile.USTAR_FORMAT)
    assert tar_files(io.BytesIO(content), {path: "key"}) == {"key": b"deep"}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_what_is_no_regular_file_has_no_content(kind):
    content = tar_of(("a", b"", {"type": kind, "linkname": "/etc/passwd"}), ("b", b"content", {}))
    assert tar_files(io.BytesIO(content), {"a": "a", "b": "b"}) == {"b": b"content"}


@given(st.data())
def test_damage_is_refused_or_gives_files(data):
    content = bytearray(tar_of(("a", b"1" * 700, {}), ("b", b"2" * 10, {})))
    damages = st.lists(st.tuples(st.integers(0, 2600), st.integers(0, 255)), min_size=1, max_size=4)
    for place, value in data.draw(damages):
        content[place] = value
    del content[data.draw(st.integers(0, len(content))) :]
    try:
        found = tar_files(io.BytesIO(bytes(content)), {"a": "a", "b": "b"})
    except RefusedError:
        return
    assert found.keys() <= {"a", "b"}
    assert all(len(part) <= len(content) for part in found.values())


def test_an_archive_of_a_million_members_is_not_gone_through():
    with pytest.raises(RefusedError, match="more than 10000 members"):
        tar_files(io.BytesIO(tar_of(("x", b"", {}))[:512] * 10_001), {"a": "a"})
