"""Files are whole or not there; a folder is one process's at a time, until that ends, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from homojl.errors import BusyError, DataError
from homojl.files import LOCK, atomic_write, file_meant, locked, make_folder, remove_leftovers

HOLD = "import sys, time\nfrom homojl.files import locked\nwith locked(__import__('pathlib').Path(sys.argv[1])):\n"


def holding(folder) -> subprocess.Popen[str]:
    """Another process that has the lock and keeps it."""
    code = HOLD + "    print('mine', flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", code, folder], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "mine\n"
    return process


def test_another_process_is_named_and_its_kill_frees_the_folder(tmp_path):
    other = holding(tmp_path)
    who = f"process {other.pid} on {os.uname().nodename}"
    try:
        with pytest.raises(BusyError, match=f"is in use: {who}"), locked(tmp_path):
            pass
    finally:
        other.send_signal(signal.SIGKILL)
        other.communicate()
    assert (tmp_path / LOCK).exists(), "what a killed process leaves"
    with locked(tmp_path):
        assert (tmp_path / LOCK).read_text() == f"process {os.getpid()} on {os.uname().nodename}\n"
        with pytest.raises(BusyError), locked(tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("left", ["", "process 1 on elsewhere\n", "\xff" * 10_000])
def test_what_lies_in_the_file_means_nothing(tmp_path, left):
    (tmp_path / LOCK).write_text(left)
    with locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_error_inside_frees_the_folder(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        print(1 / 0)
    with locked(tmp_path):
        pass


def test_one_at_a_time_of_many(tmp_path):
    """Each takes the lock a hundred times; no two are ever inside together."""
    inside, most, taken = [0], [0], [0]

    def work() -> None:
        done = 0
        while done < 100:
            try:
                with locked(tmp_path):
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    taken[0] += 1
                    inside[0] -= 1
                done += 1
            except BusyError:
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most[0], taken[0]) == (1, 400)


def test_a_folder_that_cannot_be_written_to(tmp_path):
    with pytest.raises(DataError, match="cannot write"), locked(tmp_path / "absent"):
        pass
    (tmp_path / LOCK).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="cannot write"), locked(tmp_path):
        pass
    assert not (tmp_path / "elsewhere").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot make the folder"):
        make_folder(tmp_path / "file" / "folder")


def test_leftovers_of_a_kill_are_known_and_removed(tmp_path):
    code = (
        "import os, pathlib, sys\nfrom homojl.files import atomic_write\n"
        "with atomic_write(pathlib.Path(sys.argv[1]) / 'config.toml') as temporary:\n"
        "    temporary.write_text('half')\n    os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], check=False)
    (left,) = tmp_path.iterdir()
    assert left.name != "config.toml"
    assert file_meant(left) == "config.toml"
    kept = [tmp_path / name for name in ("config.toml", ".config.toml", ".x.tmp", "thesis.tmp")]
    for path in kept:
        path.write_text("kept")
        assert file_meant(path) == path.name
    remove_leftovers(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(kept)


def test_a_full_disk_leaves_what_was_there(tmp_path):
    """The kernel refuses the write: no file of this process may grow beyond 1,000 bytes."""
    (tmp_path / "x").write_text("old")
    code = (
        "import pathlib, resource, sys\nfrom homojl.files import replace_file\nfrom homojl.errors import DataError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: replace_file(pathlib.Path(sys.argv[1]) / 'x', bytes(2000))\n"
        "except DataError as error: print(error)"
    )
    result = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert result.stdout == f"cannot write {tmp_path / 'x'}: File too large\n"
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"x": "old"}


def test_no_space_left(tmp_path):
    def write() -> None:
        with atomic_write(tmp_path / "x") as temporary:
            temporary.unlink()
            temporary.symlink_to("/dev/full")
            temporary.write_text("x")

    with pytest.raises(OSError, match="No space left"):
        write()
    assert list(tmp_path.iterdir()) == []
