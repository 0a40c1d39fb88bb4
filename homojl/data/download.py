"""Downloads with a progress bar and a checksum, through torchvision; without a network, what to put where."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import os
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from homojl.data.guards import open_unpacked, reading
from homojl.errors import DataError

if TYPE_CHECKING:
    import torch

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
        progress: whether to show torchvision's progress bar on stderr.

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
            except (OSError, HTTPException, RuntimeError, ImportError, ValueError) as error:
                failures.append(f"{urlsplit(url).netloc}: {' '.join(str(error).split()) or type(error).__name__}")
        else:
            why = f"could not download {file.name} ({'; '.join(failures)})"
            raise missing_files_error(dataset, files[number:], folder, why)


def _download(file: RemoteFile, url: str, folder: Path, *, progress: bool) -> None:
    """Download one file into a folder beside its place, then move it there in one step."""
    download_url = importlib.import_module(f"{import_torchvision().__name__}.datasets.utils").download_url
    folder.mkdir(parents=True, exist_ok=True)
    # torchvision offers neither a time limit nor a way to hide its bar: around the call, new sockets get a
    # timeout by default, and stderr, where the bar is drawn, leads nowhere.
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as temporary:
            with contextlib.nullcontext() if progress else contextlib.redirect_stderr(io.StringIO()):
                download_url(url, temporary, file.name, file.md5)
            os.replace(Path(temporary, file.name), folder / file.name)
    finally:
        socket.setdefaulttimeout(timeout)


_torchvision_schemas: list[torch.library.Library] = []  # torch forgets a schema when its Library object dies


def import_torchvision() -> ModuleType:
    """torchvision, also beside a CPU-only torch where its own import fails.

    torchvision's wheel on PyPI is a CUDA build. Beside a CPU torch its operators do not load, and its import
    then fails while it registers shape functions for two of them: "operator torchvision::nms does not exist"
    (https://github.com/pytorch/vision/issues/9085). Declaring the two operators, without code, is enough to
    import the rest; calling them still fails, with torchvision's own message.

    Raises:
        ImportError, RuntimeError: torchvision is not installed, or fails to import for any other reason.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
    import torch

    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _torchvision_schemas.append(library)
    return importlib.import_module("torchvision")
