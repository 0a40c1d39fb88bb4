"""Downloads from a server on this machine; no test asks anything of another one."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import socket
import threading

import pytest

from homojl.data.download import RemoteFile, download_files, find_file, verify_file
from homojl.errors import DataError

CONTENT = bytes(range(256)) * 700


@pytest.fixture
def server(tmp_path):
    """The address of a server that offers data.bin and cut.bin, which it breaks off in the middle."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path not in ("/data.bin", "/cut.bin"):
                return self.send_error(404)
            self.send_response(200)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(CONTENT if self.path == "/data.bin" else CONTENT[:1000])

        do_HEAD = do_GET

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.fixture
def closed_address():
    """An address on this machine where nothing listens."""
    with socket.socket() as bound_but_not_listening:
        bound_but_not_listening.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound_but_not_listening.getsockname()[1]}"


def remote(*urls: str, content: bytes = CONTENT) -> RemoteFile:
    return RemoteFile(name=urls[0].rpartition("/")[2], urls=urls, md5=hashlib.md5(content).hexdigest())


def files_below(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("progress", [True, False])
def test_download(tmp_path, server, progress, capfd):
    folder = tmp_path / "new" / "folder"
    download_files("set", [remote(f"{server}/data.bin")], folder, progress=progress)
    assert (folder / "data.bin").read_bytes() == CONTENT
    assert files_below(folder) == ["data.bin"]
    assert ("100%" in capfd.readouterr().err) == progress
    assert socket.getdefaulttimeout() is None


def test_mirrors_are_tried_in_order(tmp_path, server, closed_address):
    urls = [f"{closed_address}/data.bin", f"{server}/absent.bin", f"{server}/data.bin"]
    download_files("set", [remote(*urls)], tmp_path, progress=False)
    assert (tmp_path / "data.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("case", ["wrong checksum", "broken off", "not there", "no server"])
def test_failed_download_leaves_nothing_and_says_what_to_put_where(tmp_path, server, closed_address, case):
    bad = {
        "wrong checksum": remote(f"{server}/data.bin", content=b"other"),
        "broken off": remote(f"{server}/cut.bin"),
        "not there": remote(f"{server}/absent.bin"),
        "no server": remote(f"{closed_address}/data.bin"),
    }[case]
    other = remote("http://127.0.0.1:9/other.bin", content=b"")
    with pytest.raises(DataError) as caught:
        download_files("set", [bad, other], tmp_path / "folder", progress=False)
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        "set: could not download",
        str(tmp_path / "folder"),
        *bad.urls,
        *other.urls,
        bad.md5,
        other.md5,
    ):
        assert part in message
    assert files_below(tmp_path / "folder") == []


def test_failure_keeps_what_came_before_and_does_not_ask_for_it_again(tmp_path, server, closed_address):
    files = [remote(f"{server}/data.bin"), remote(f"{closed_address}/second.bin")]
    with pytest.raises(DataError, match=r"second\.bin") as caught:
        download_files("set", files, tmp_path, progress=False)
    assert "data.bin" not in str(caught.value)
    assert files_below(tmp_path) == ["data.bin"]


def test_folder_that_cannot_be_made(tmp_path, server):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="could not download"):
        download_files("set", [remote(f"{server}/data.bin")], tmp_path / "file" / "folder", progress=False)


def test_find_file_takes_the_first_folder_and_the_packed_form(tmp_path):
    file = RemoteFile("a.gz", (), "", unpacked="a")
    folders = [tmp_path / "1", tmp_path / "2"]
    assert find_file(file, folders) is None
    for folder, name in (("2", "a"), ("2", "a.gz"), ("1", "a")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).touch()
        assert find_file(file, folders) == tmp_path / folder / name


def test_verify_file(tmp_path):
    content = b"pixels"
    md5, content_md5 = hashlib.md5(gzip.compress(content)).hexdigest(), hashlib.md5(content).hexdigest()
    packed, unpacked, other = tmp_path / "a.gz", tmp_path / "a", tmp_path / "b"
    packed.write_bytes(gzip.compress(content, 1) + gzip.compress(b""))  # compressed in another way
    unpacked.write_bytes(content)
    known = RemoteFile("a.gz", (), md5, "a", content_md5=content_md5, recompressible=True)
    verify_file(known, packed)
    verify_file(known, unpacked)
    verify_file(RemoteFile("a.gz", (), md5, "a", recompressible=True), packed)
    verify_file(RemoteFile("a.gz", (), md5, unpacked=tmp_path.name), tmp_path)
    other.write_bytes(b"other")
    packed_other = tmp_path / "other" / "a.gz"
    packed_other.parent.mkdir()
    packed_other.write_bytes(gzip.compress(b"other"))
    for file, path in ((known, other), (known, packed_other), (RemoteFile("a.gz", (), md5), packed)):
        with pytest.raises(DataError, match="move it away") as caught:
            verify_file(file, path)
        assert str(path) in str(caught.value)
    packed.write_bytes(packed.read_bytes()[:-30])
    with pytest.raises(DataError, match="not a readable gzip"):
        verify_file(known, packed)
