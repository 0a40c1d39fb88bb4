"""Whatever a file contains, a reader gives arrays or one line that names the file."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st

from homojl.data.readers import read_cifar_binary, read_idx, read_npz, read_svhn_mat
from homojl.errors import DataError

from .formats import (
    cifar_files,
    npz_arrays,
    random_images,
    refusal,
    write_cifar_archive,
    write_idx,
    write_svhn,
)

READERS = {
    "idx": (read_idx,),
    "idx.gz": (read_idx,),
    "cifar10": (read_cifar_binary, 10),
    "cifar100": (read_cifar_binary, 100),
    "mat": (read_svhn_mat,),
    "mat-compressed": (read_svhn_mat,),
    "npz": (read_npz,),
    "npz-compressed": (read_npz,),
}


@pytest.fixture(scope="module")
def sound_files(tmp_path_factory) -> dict[str, bytes]:
    """A small sound file for each reader."""
    folder = tmp_path_factory.mktemp("sound")
    images = random_images(9, 2, 3, 32, 32)
    write_idx(folder / "idx", images[:, 0])
    write_idx(folder / "idx.gz", images[:, 0])
    for n_classes in (10, 100):
        contents = {name: data for name, (_, _, data) in cifar_files(n_classes, per_file=1).items()}
        write_cifar_archive(folder / f"cifar{n_classes}", n_classes, contents)
    write_svhn(folder / "mat", images, np.arange(2), compress=False)
    write_svhn(folder / "mat-compressed", images, np.arange(2))
    for name, save in (("npz", np.savez), ("npz-compressed", np.savez_compressed)):
        with open(folder / name, "wb") as file:
            save(file, **npz_arrays())
    return {path.name: path.read_bytes() for path in folder.iterdir()}


one_file_is_overwritten = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.parametrize("form", READERS)
def test_the_sound_files_are_sound(tmp_path, sound_files, form):
    (tmp_path / "file").write_bytes(sound_files[form])
    read, *arguments = READERS[form]
    assert len(read(tmp_path / "file", *arguments)) > 0


@pytest.mark.parametrize("form", READERS)
@one_file_is_overwritten
@given(data=st.data())
def test_truncated_anywhere(tmp_path, sound_files, form, data):
    whole = sound_files[form]
    (tmp_path / "file").write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    refusal(*(READERS[form][0], tmp_path / "file", *READERS[form][1:]))


@pytest.mark.parametrize("form", READERS)
@one_file_is_overwritten
@given(data=st.binary(max_size=300), as_content=st.booleans())
@example(data=b"\x1f\x8b", as_content=False)
@example(data=b"PK\x03\x04", as_content=False)
def test_random_bytes(tmp_path, form, data, as_content):
    (tmp_path / "file").write_bytes(gzip.compress(data) if as_content else data)
    refusal(*(READERS[form][0], tmp_path / "file", *READERS[form][1:]))


@pytest.mark.parametrize("form", READERS)
@one_file_is_overwritten
@given(data=st.data())
def test_damaged_bytes_give_a_result_or_a_refusal(tmp_path, sound_files, form, data):
    damaged = bytearray(sound_files[form])
    places = st.one_of(st.integers(0, min(400, len(damaged) - 1)), st.integers(0, len(damaged) - 1))
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=4)):
        damaged[place] = value
    (tmp_path / "file").write_bytes(damaged)
    read, *arguments = READERS[form]
    try:
        read(tmp_path / "file", *arguments)
    except DataError as error:
        message = str(error)
    else:
        return  # damage where nothing can tell, such as in a pixel
    assert str(tmp_path / "file") in message
    assert "\n" not in message


@pytest.mark.parametrize("form", READERS)
def test_missing_file_and_folder_in_its_place(tmp_path, form):
    read, *arguments = READERS[form]
    assert "no such file" in refusal(read, tmp_path / "absent", *arguments)
    refusal(read, tmp_path, *arguments)
