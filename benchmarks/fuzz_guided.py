"""Readers in pure Python under atheris, which looks for inputs that reach new code.

    pip install atheris
    python benchmarks/fuzz_guided.py svhn --inputs 100000

Kinds: those of tests/fuzzing/sound.py that are one file and are parsed here, not in a library; and "tar", an archive
without gzip's checksum around it. Any error that no reader may end with ends it with the input and the traceback. Needs
the group `test`.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

with atheris.instrument_imports(include=["homojl.data", "homojl.files", "homojl.training.config", "tomllib"]):
    from homojl.data.guards import RefusedError
    from homojl.data.tar import tar_files
    from homojl.errors import HomoJLError
    from tests.fuzzing.datasets import tar_of
    from tests.fuzzing.sound import KINDS, Kind


def _read_tar(path: Path) -> None:
    try:
        tar_files(io.BytesIO(path.read_bytes()), {"a": "a", "d/b": "b"})
    except RefusedError as error:  # `reading` puts the file's name in front
        raise HomoJLError(str(error)) from None


GUIDED = {
    name: KINDS[name] for name in ("svhn uncompressed", "svhn", "idx", "idx gzipped", "npz", "config", "assignment")
}
GUIDED["tar"] = Kind("x.tar", lambda p: p.write_bytes(tar_of(("a", b"1" * 600, {}), ("d/b", b"2", {}))), _read_tar)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=GUIDED)
    parser.add_argument("--inputs", type=int, default=100_000)
    options = parser.parse_args()
    kind = GUIDED[options.kind]
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        folder, path = Path(name), Path(name) / kind.name
        (folder / "corpus").mkdir()
        kind.write(folder / "corpus" / kind.name)

        def read(data: bytes) -> None:
            path.write_bytes(data)
            try:
                kind.read(path)
            except HomoJLError as error:
                if not str(error).isprintable():
                    raise AssertionError(repr(error)) from None

        limits = [f"-runs={options.inputs}", "-timeout=10", "-rss_limit_mb=3000", "-max_len=20000"]
        atheris.Setup([sys.argv[0], *limits, str(folder / "corpus")], read)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
