"""Damage at random: to bytes, to texts, to JSON, and to what lies in a folder."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import h5py
import torch

from homojl.results.schema import Schema
from tests.fuzzing.own import NODES, SCHEMAS, seal, sealed
from tests.fuzzing.settings import SETTINGS, VALUES

_NUMBERS = (0, 1, 127, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)


def mutated(data: bytes, rng: Random, others: Sequence[bytes] = ()) -> bytes:
    """Bytes with one to four damages: flips, numbers, cuts, repetitions, pieces of other files."""
    content = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        _DAMAGES[rng.randrange(len(_DAMAGES))](content, rng, others)
    return bytes(content)


def _place(content: bytearray, rng: Random) -> int:
    """Anywhere; more often near the start, where headers are."""
    end = len(content) if rng.random() < 0.5 else min(len(content), 300)
    return rng.randrange(end) if end else 0


def _flip(content: bytearray, rng: Random, _: Sequence[bytes]) -> None:
    for _ in range(rng.choice((1, 1, 1, 8, 64))):
        if content:
            content[_place(content, rng)] ^= 1 << rng.randrange(8)


def _overwrite(content: bytearray, rng: Random, _: Sequence[bytes]) -> None:
    place, size = _place(content, rng), rng.choice((1, 2, 4, 8))
    number = rng.choice(_NUMBERS) % 2 ** (8 * size)
    content[place : place + size] = number.to_bytes(size, rng.choice(("little", "big")))


def _cut(content: bytearray, rng: Random, _: Sequence[bytes]) -> None:
    del content[_place(content, rng) :]


def _remove(content: bytearray, rng: Random, _: Sequence[bytes]) -> None:
    place = _place(content, rng)
    del content[place : place + rng.choice((1, 4, 8, 64, 512))]


def _repeat(content: bytearray, rng: Random, _: Sequence[bytes]) -> None:
    place, size = _place(content, rng), rng.choice((1, 8, 64, 512, 4096))
    content[place:place] = content[place : place + size] * rng.choice((1, 2, 50))


def _insert(content: bytearray, rng: Random, _: Sequence[bytes]) -> None:
    place = _place(content, rng)
    content[place:place] = rng.choice((rng.randbytes(rng.randint(1, 64)), bytes(512), struct.pack("<d", float("nan"))))


def _splice(content: bytearray, rng: Random, others: Sequence[bytes]) -> None:
    if others:
        other = rng.choice(others)
        start = rng.randrange(len(other)) if other else 0
        place = _place(content, rng)
        content[place : rng.choice((place, len(content)))] = other[start : start + rng.choice((16, 256, 4096, 2**17))]


_DAMAGES: tuple[Callable[[bytearray, Random, Sequence[bytes]], None], ...] = (
    *(_flip, _flip, _overwrite, _overwrite, _cut, _remove, _repeat, _insert, _splice),
)


def mutated_text(data: bytes, rng: Random) -> bytes:
    """TOML or the like with values, keys or lines exchanged."""
    lines = data.decode("utf-8", "replace").split("\n")
    for _ in range(rng.randint(1, 3)):
        i = rng.randrange(len(lines))
        key, equals, _value = lines[i].partition("=")
        what = rng.randrange(6)
        if what <= 2 and equals:
            lines[i] = f"{key}= {rng.choice(VALUES)}"
        elif what == 3:
            lines.insert(i, rng.choice((f"{rng.choice(SETTINGS).partition('.')[2]} = {rng.choice(VALUES)}", "[model]",
                                        "[[optim]]", "[a.b]", "=", '"""', "\ufeff", "[")))  # fmt: skip
        elif what == 4:
            lines.insert(i, rng.choice(lines))
        else:
            del lines[i]
            lines = lines or [""]
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def mutated_tree(values: Any, rng: Random) -> Any:
    """JSON values with one of them, anywhere, exchanged or removed."""
    if isinstance(values, dict | list) and values and rng.random() < 0.85:
        copy = dict(values) if isinstance(values, dict) else list(values)
        key = rng.choice(list(copy)) if isinstance(copy, dict) else rng.randrange(len(copy))
        if rng.random() < 0.1:
            del copy[key]
        else:
            copy[key] = mutated_tree(copy[key], rng)
        return copy
    return rng.choice(NODES)


def spoil_at_random(kind: str, path: Path, rng: Random, others: Sequence[bytes]) -> None:
    """Damage a sound file or folder of a kind."""
    if kind == "assignment":
        content = f"{rng.choice(SETTINGS)}={rng.choice(VALUES)}".encode("utf-8", "surrogatepass")
        path.write_bytes(content if rng.random() < 0.5 else mutated(content, rng))
    elif path.is_dir():
        _spoil_folder(path, rng, others)
    elif kind in SCHEMAS and rng.random() < 0.85:
        _spoil_hdf5(path, SCHEMAS[kind], rng)
    elif kind == "checkpoint" and rng.random() < 0.5:
        sealed(path, lambda tensors, header: _spoil_checkpoint(tensors, header, rng))
    else:
        _spoil_file(path, rng, others)


def _spoil_file(path: Path, rng: Random, others: Sequence[bytes]) -> None:
    content = path.read_bytes()
    if path.suffix in (".toml", ".txt") and rng.random() < 0.7:
        path.write_bytes(mutated_text(content, rng))
    elif path.suffix in (".json", ".jsonl") and rng.random() < 0.7:
        lines = content.decode().splitlines() if path.suffix == ".jsonl" else [content.decode()]
        path.write_bytes("".join(json.dumps(mutated_tree(json.loads(line), rng)) + "\n" for line in lines).encode())
    else:
        path.write_bytes(mutated(content, rng, others))


def _spoil_folder(folder: Path, rng: Random, others: Sequence[bytes]) -> None:
    file = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    what = rng.random()
    if what < 0.3 and file.suffix == ".safetensors":
        sealed(file, lambda tensors, header: _spoil_checkpoint(tensors, header, rng))
    elif what < 0.3 and file.suffix == ".h5":
        _spoil_hdf5(file, SCHEMAS["results"], rng)
    elif what < 0.8:
        _spoil_file(file, rng, others)
    else:
        _misplace(folder, file, rng)


def _misplace(folder: Path, file: Path, rng: Random) -> None:
    """Something else in the place of a file."""
    what = rng.randrange(6)
    if what == 5:
        file.rename(file.with_name(rng.choice(("x\ny" + file.suffix, "x" * 200 + file.suffix, file.name + ".x"))))
        return
    file.unlink()
    if what == 0:
        file.symlink_to(rng.choice(("/dev/zero", "/dev/full", "/etc/passwd", file.name, "/proc/self/mem", "..")))
    elif what == 1:
        os.mkfifo(file)
    elif what == 2:
        file.mkdir()
    elif what == 3:
        source = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()) or [Path(__file__)])
        shutil.copy(source, file)


def _spoil_checkpoint(tensors: dict[str, torch.Tensor], header: dict[str, Any], rng: Random) -> None:
    if rng.random() < 0.6:
        changed = mutated_tree(header, rng)
        if isinstance(changed, dict):
            header.clear()
            header.update(changed)
        return
    name = rng.choice(sorted(tensors))
    tensor = tensors.pop(name)
    what = rng.randrange(6)
    if what == 0:
        tensors[name] = torch.full_like(tensor, rng.choice((0, -1, 1)))
    elif what == 1 and tensor.is_floating_point():
        tensors[name] = tensor * rng.choice((float("nan"), float("inf"), -1.0, 1e30))
    elif what == 2:
        tensors[name] = tensor.to(rng.choice((torch.float64, torch.int64, torch.bool, torch.complex64, torch.float16)))
    elif what == 3:
        tensors[name] = tensor.reshape(-1)[: rng.randrange(3)].clone()
    elif what == 4:
        tensors[rng.choice(("model.x", "optimizer.0.x", "optimizer.-1.step", "optimizer.x", "x", name + "x"))] = tensor


def _spoil_hdf5(path: Path, schema: Schema, rng: Random) -> None:
    """With a checksum that is right, so that HDF5 sees the damage."""
    if rng.random() < 0.6:
        content = path.read_bytes()
        damaged = mutated(content[512:], rng) if rng.random() < 0.3 else _nudged(content[512:], rng)
        seal(path, schema, content[:512] + damaged)
        return
    with h5py.File(path, "r+") as file:
        name = rng.choice([name for name in schema.entries if name in file])
        data = file[name][()]
        del file[name]
        _put_other(file, name, data, rng)
    seal(path, schema, path.read_bytes())


def _nudged(data: bytes, rng: Random) -> bytes:
    """A few bytes changed, which leaves more of the structure whole."""
    content = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        content[rng.randrange(len(content))] = rng.choice((0, 1, 255, rng.randrange(256)))
    return bytes(content)


def _put_other(file: h5py.File, name: str, data: Any, rng: Random) -> None:
    """Other data in the place of a dataset, or none."""
    what = rng.randrange(7)
    if what == 0:
        file[name] = rng.choice((0, -1, 1.5, b"x", float("nan"), [1, 2, 3], [[1.0]], [b"a", b"bc"], True))
    elif what == 1:
        file[name] = h5py.SoftLink(rng.choice(("/", "/config", name, "/nowhere")))
    elif what == 2:
        file[name] = h5py.ExternalLink(rng.choice((file.filename, "/etc/passwd")), "/x")
    elif what == 3:
        size, piece = rng.choice((0, 1, 2**20, 2**33)), rng.choice((1, 1024))
        file.create_dataset(
            name, shape=(size,), dtype=rng.choice(("f4", "i8", "S8")), chunks=(min(size, piece),) if size else None
        )
    elif what == 4:
        file.create_group(name)
    elif what == 5 and getattr(data, "ndim", 0):
        file[name] = data[: rng.randrange(3)]
