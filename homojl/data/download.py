"""Downloads with a progress bar and a checksum; without a network, a message that says which file to put where."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from homojl.data.guards import open_unpacked, reading
from homojl.errors import DataError
from homojl.version import __version__

TIMEOUT = 15.0
"""Seconds that a silent server is waited for."""


@dataclass(frozen=True)
class RemoteFile:
    """A file that a dataset consists of.

    Attributes:
        name: the file's name, on the server and in the dataset's folder.
        urls: where to get it, tried in order.
        md5: of the file as downloaded.
        unpacked: name of the file or folder that unpacking it gives, accepted in its place.
        content_md5: of the content after gunzip, where known: it also holds for a re-compressed file.
        recompressible: whether compressing it again gives another md5 but the same data, so that `md5` holds
            for a download only and not for a file that the user put there.
    """

    name: str
    urls: tuple[str, ...]
    md5: str
    unpacked: str | None = None
    content_md5: str | None = None
    recompressible: bool = False


def find_file(file: RemoteFile, folders: Sequence[Path]) -> Path | None:
    """The first of `folders` that has the file, as downloaded or unpacked; None where none has."""
    for folder in folders:
        for name in filter(None, (file.name, file.unpacked)):
            if (folder / name).exists():
                return folder / name
    return None


def verify_file(file: RemoteFile, path: Path) -> None:
    """Hold a file on disk against its known checksum. An unpacked folder has none; reading it checks it.

    Raises:
        DataError: the content is not the published one, or cannot be read.
    """
    if path.is_dir() or (file.content_md5 is None and (path.name != file.name or file.recompressible)):
        return
    expected = file.content_md5 or file.md5
    with reading(path, "gzip"), contextlib.ExitStack() as opened:
        if file.content_md5:
            stream, _ = opened.enter_context(open_unpacked(path))
        else:
            stream = opened.enter_context(path.open("rb"))
        digest = hashlib.md5(usedforsecurity=False)
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    md5 = digest.hexdigest()
    if md5 != expected:
        raise DataError(
            f"{path}: damaged, or not the published file (md5 {md5}, expected {expected}); move it away and try again"
        )


def missing_files_error(dataset: str, files: Sequence[RemoteFile], folder: Path, why: str) -> DataError:
    """The one-line error for files that are not here: what to put where, and where to get it."""
    listing = ", ".join(f"{file.name} (from {' or '.join(file.urls)}, md5 {file.md5})" for file in files)
    return DataError(f"{dataset}: {why}. Put into {folder}: {listing}")


def download_files(dataset: str, files: Sequence[RemoteFile], folder: Path, *, progress: bool = True) -> None:
    """Download files into `folder`, each under a temporary name until it is whole and its checksum is right.

    Args:
        dataset: the dataset's name, for messages.
        files: what to download; each one's urls are tried in order, once.
        folder: created where it does not exist.
        progress: whether to show a progress bar on stderr.

    Raises:
        DataError: at the first file that no url gave; the message says what to put where.
    """
    from http.client import HTTPException

    for number, file in enumerate(files):
        failures = []
        for url in file.urls:
            try:
                _download(file, url, folder, progress=progress)
                break
            except (OSError, HTTPException, ValueError) as error:
                failures.append(f"{urlsplit(url).netloc}: {' '.join(str(error).split()) or type(error).__name__}")
        else:
            why = f"could not download {file.name} ({'; '.join(failures)})"
            raise missing_files_error(dataset, files[number:], folder, why)


def _download(file: RemoteFile, url: str, folder: Path, *, progress: bool) -> None:
    """Download one file into a folder beside its place, check it, then move it there in one step."""
    from urllib.request import Request, urlopen

    from tqdm import tqdm

    folder.mkdir(parents=True, exist_ok=True)
    request = Request(url, headers={"User-Agent": f"homojl/{__version__}"})
    digest = hashlib.md5(usedforsecurity=False)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as temporary:
        path = Path(temporary, file.name)
        with urlopen(request, timeout=TIMEOUT) as answer, path.open("wb") as out:
            size = int(answer.headers.get("Content-Length") or 0)
            bar = tqdm(desc=file.name, total=size or None, unit="B", unit_scale=True, disable=not progress)
            with bar:
                while block := answer.read(1 << 16):
                    out.write(block)
                    digest.update(block)
                    bar.update(len(block))
        if digest.hexdigest() != file.md5:
            raise ValueError(f"got another file than the published one (md5 {digest.hexdigest()}), or a part of it")
        os.replace(path, folder / file.name)
