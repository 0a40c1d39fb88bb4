"""HDF5 files that describe themselves: a schema in one table, and a writer and a reader that both follow it."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np

from homojl.errors import ConfigError, DataError, HomoJLError
from homojl.files import read_bytes, replace_file
from homojl.results.storage import attach_scales, check_dataset, is_coordinate, is_inside
from homojl.results.tables import Table, code
from homojl.version import __version__

_BLOCK = 512  # bytes of HDF5's user block, which holds one line: the SHA-256 of all that follows
_COMPRESSED_FROM = 1 << 16  # bytes; below, compression saves less than it costs to read
_MAX_FILE = 1 << 36  # bytes; trajectories of many images take some billions

T = TypeVar("T")


@dataclass(frozen=True)
class DatasetSpec:
    """One dataset of the file.

    Attributes:
        dtype: "text", "number" (int64 where every value is whole, else float64) or a numpy type.
        dims: name of each dimension; datasets agree on the size of a name. One that starts with * stands for
            any number of dimensions. A dataset with the name of its only dimension holds that dimension's
            coordinates, for its group.
        unit: "1" where it has none.
        description: one sentence.
    """

    dtype: str
    dims: tuple[str, ...]
    unit: str
    description: str


@dataclass(frozen=True)
class Column:
    """One number or text of every record in a group.

    Attributes:
        unit: "1" where it has none.
        description: one sentence.
        dtype: as in `DatasetSpec`.
        of: takes it from a record; None: it is the record's attribute of the column's name.
    """

    unit: str
    description: str
    dtype: str = "float64"
    of: Callable[[Any], Any] | None = None


def text(description: str, of: Callable[[Any], Any] | None = None) -> Column:
    """A column of texts."""
    return Column("1", description, "text", of)


def count(unit: str, description: str, of: Callable[[Any], Any] | None = None) -> Column:
    """A column of whole numbers."""
    return Column(unit, description, "int64", of)


@dataclass(frozen=True)
class Records:
    """A group of datasets with one element for each record.

    Attributes:
        dim: what an element is.
        columns: by the name of their datasets.
        description: of the group; the root has that of its file.
    """

    dim: str
    columns: Mapping[str, Column]
    description: str = ""

    def parts(self, group: str, records: Sequence[Any]) -> dict[str, object]:
        """The values of every column, by the name of its dataset; nothing without a record."""
        if not records:
            return {}
        return {
            f"{group.rstrip('/')}/{name}": [getattr(r, name) if c.of is None else c.of(r) for r in records]
            for name, c in self.columns.items()
        }


@dataclass(frozen=True)
class Schema:
    """The form of a file.

    Attributes:
        name: of the schema, in the file's first bytes.
        version: grows when a reader of this version would misread the file.
        groups: description by name; the root is "/".
        entries: every dataset by its name.
        attributes: name and meaning of each group's attributes, without those of the root that every file has.
        records: the groups that consist of records.
    """

    name: str
    version: int
    groups: Mapping[str, str]
    entries: Mapping[str, DatasetSpec]
    attributes: Mapping[str, Mapping[str, str]]
    records: Mapping[str, Records] = field(default_factory=dict)

    @staticmethod
    def of_records(
        name: str,
        version: int,
        description: str,
        records: Mapping[str, Records],
        *,
        entries: Mapping[str, DatasetSpec] | None = None,
        attributes: Mapping[str, str] | None = None,
    ) -> Schema:
        """The schema of a file that consists of records.

        Args:
            name, version: as in `Schema`.
            description: of the file.
            records: by group.
            entries: further datasets.
            attributes: of the root.
        """
        groups = {"/": description} | {group: each.description for group, each in records.items() if group != "/"}
        datasets = {
            f"{group.rstrip('/')}/{column}": DatasetSpec(c.dtype, (each.dim,), c.unit, c.description)
            for group, each in records.items()
            for column, c in each.columns.items()
        }
        return Schema(name, version, groups, datasets | dict(entries or {}), {"/": dict(attributes or {})}, records)

    def save(
        self,
        path: str | Path,
        records: Mapping[str, Sequence[Any]],
        *,
        parts: Mapping[str, object] | None = None,
        attributes: Mapping[str, object] | None = None,
    ) -> None:
        """Write records, whole or not at all.

        Args:
            records: by group.
            parts: of further datasets, by their name.
            attributes: of the root.

        Raises:
            DataError: the file cannot be written; one that was there is untouched.
        """
        given = dict(parts or {})
        for group, each in self.records.items():
            given |= each.parts(group, records[group])
        arrays, _ = self.arrays(given)
        self.write(path, arrays, {"/": attributes or {}})

    def load(self, path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
        """The datasets by name and the attributes of the root of what `save` wrote.

        Raises:
            DataError: no such file, not a whole file of this schema, or one of a later version.
        """
        return self.read(
            path, lambda file: (self.datasets(file), {key: file.attrs[key] for key in self.attributes["/"]})
        )

    def arrays(self, parts: Mapping[str, object]) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """Every dataset by its name, in the schema's types and shapes, and the size of each dimension.

        Args:
            parts: by dataset; None: absent.

        Raises:
            ConfigError: parts contradict each other or the schema.
        """
        sizes: dict[str, int] = {}
        return {name: self._array(name, part, sizes) for name, part in parts.items() if part is not None}, sizes

    def write(
        self, path: str | Path, arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Mapping[str, object]]
    ) -> None:
        """Write a file, whole or not at all.

        It is made in memory first, so that a full disk is an error like any other: HDF5 itself cannot close a file
        whose last bytes did not fit.

        Raises:
            DataError: the file cannot be written; one that was there is untouched.
        """
        buffer = io.BytesIO()
        common = {
            "schema": self.name,
            "schema_version": self.version,
            "homojl_version": __version__,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        with h5py.File(buffer, "w", userblock_size=_BLOCK) as file:
            for name, values in {**attributes, "/": common | dict(attributes.get("/", {}))}.items():
                group = file.require_group(name)
                for key, value in values.items():
                    group.attrs[key] = h5py.Empty("f8") if value is None else value
            for name, array in arrays.items():
                self._write_dataset(file, name, array)
            for name, description in self.groups.items():
                if name in file:
                    file[name].attrs["description"] = description
            # Coordinates become scales before others are given them; the root's dimensions come before the groups'.
            for name in sorted(arrays, key=lambda name: (not is_coordinate(file[name]), name.count("/"))):
                attach_scales(file[name])
        content = buffer.getvalue()
        replace_file(path, self._head(content) + content[_BLOCK:])

    def read(self, path: str | Path, build: Callable[[h5py.File], T]) -> T:
        """What `build` makes of a file.

        The checksum is verified before HDF5 sees the file: one damaged byte can make HDF5 loop for ever.

        Raises:
            DataError: no such file, not a whole file of this schema, or one of a later version.
        """
        try:
            content = read_bytes(path, limit=_MAX_FILE)
            if not content.startswith(self._mark):
                raise DataError(f"not a {self._what} file of homojl, which starts with {self._mark.decode()!r}")
            if content[:_BLOCK] != self._head(content):
                raise DataError("damaged or incomplete, or changed since homojl wrote it: its checksum is wrong")
            with h5py.File(io.BytesIO(content), "r") as file:
                schema, version = file.attrs["schema"], int(file.attrs["schema_version"])
                if (schema, version) != (self.name, self.version):
                    raise DataError(f"schema {schema} {version}; this homojl reads {self.name} {self.version}")
                return build(file)
        except HomoJLError as error:
            raise DataError(f"{path}: {error}") from error
        except OSError as error:
            raise DataError(f"{path}: {error.strerror or error}") from error
        except Exception as error:  # HDF5 answers a file of another form with errors of nearly every class
            why = " ".join(str(error).split())[:200] or type(error).__name__
            raise DataError(f"{path}: not in the form of {self.name} {self.version}: {why}") from error

    def datasets(self, file: h5py.File) -> dict[str, Any]:
        """Every dataset of an open file that is there; a text as `str`, several as an array of them."""
        found = {}
        for name, entry in self.entries.items():
            if not is_inside(file, name):
                continue
            dataset = file[name]
            check_dataset(dataset, name)
            if entry.dtype == "text":
                found[name] = dataset.asstr()[()]
                continue
            if dataset.dtype.kind not in "iuf":
                raise DataError(f"{name} is {dataset.dtype}, expected numbers")
            found[name] = dataset[()]
        return found

    def describe(self) -> str:
        """The schema as the Markdown tables that docs/hdf5.md shows."""
        groups = Table(("Group", "Holds"), [(code(name), holds) for name, holds in self.groups.items()])
        datasets = [
            (
                code(name),
                f"({', '.join(entry.dims)}{',' if len(entry.dims) == 1 else ''})",
                {"text": "string", "number": "int64 or float64"}.get(entry.dtype, entry.dtype),
                entry.unit,
                entry.description,
            )
            for name, entry in self.entries.items()
        ]
        common = {
            "schema": f'always "{self.name}"',
            "schema_version": f"{self.version}; grows when a reader of this version would misread the file",
            "homojl_version": "version that wrote the file",
            "created": "when it was written, ISO 8601, UTC",
        }
        attributes = [
            (code(group), code(name), meaning)
            for group, names in {**self.attributes, "/": common | dict(self.attributes.get("/", {}))}.items()
            for name, meaning in names.items()
        ]
        tables = (
            groups,
            Table(("Dataset", "Shape", "Type", "Unit", "Description"), datasets),
            Table(("Attribute of", "Name", "Value"), attributes),
        )
        return "\n".join(table.markdown() for table in tables)

    # ---- parts

    @property
    def _what(self) -> str:
        return self.name.removeprefix("homojl-")

    @property
    def _mark(self) -> bytes:
        return f"{self.name} sha256:".encode()

    def _head(self, content: bytes) -> bytes:
        """The user block that belongs to the file."""
        digest = hashlib.sha256(memoryview(content)[_BLOCK:]).hexdigest().encode()
        return (self._mark + digest + b"\n").ljust(_BLOCK, b"\0")

    def _write_dataset(self, file: h5py.File, name: str, array: np.ndarray) -> None:
        """One dataset with its unit, its description and the names of its dimensions; compressed if it is big."""
        entry = self.entries[name]
        options: dict[str, Any] = {}
        if array.dtype.kind == "S":
            array = array.astype(h5py.string_dtype("utf-8", array.dtype.itemsize))
        elif array.nbytes >= _COMPRESSED_FROM:
            options.update(compression="gzip", shuffle=True)
        dataset = file.create_dataset(name, data=array, **options)
        dataset.attrs["unit"] = entry.unit
        dataset.attrs["description"] = entry.description
        for axis, label in enumerate(_dims(entry, array.ndim)):
            dataset.dims[axis].label = label

    def _array(self, name: str, part: Any, sizes: dict[str, int]) -> np.ndarray:
        """One part of a record in the schema's type, held against `sizes`, the dimensions seen so far."""
        entry = self.entries[name]
        try:
            if entry.dtype == "text":
                texts = [part] if isinstance(part, str) else part
                if any("\0" in text for text in texts):
                    raise ValueError("a text holds the character NUL")
                texts = [text.encode() for text in texts]
                array = np.array(texts[0] if isinstance(part, str) else texts, dtype=bytes)
            elif entry.dtype == "number":
                array = np.asarray(part)
                array = array.astype("int64" if array.dtype.kind in "iu" else "float64", casting="safe")
            else:
                array = np.asarray(part).astype(entry.dtype, casting="same_kind")
        except (TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"{name} is not of type {entry.dtype}: {error}") from error
        dims = _dims(entry, array.ndim)
        if len(dims) != array.ndim:
            raise ConfigError(f"{name} has shape {array.shape}; expected dimensions ({', '.join(entry.dims)})")
        for dim, size in zip(entry.dims, array.shape, strict=False):
            if not dim.startswith("*") and sizes.setdefault(dim, size) != size:
                raise ConfigError(f"{name} has shape {array.shape}, but elsewhere {dim} has size {sizes[dim]}")
        return array


def _dims(entry: DatasetSpec, ndim: int) -> tuple[str, ...]:
    """The names of the dimensions of a dataset that has `ndim` of them."""
    if not (entry.dims and entry.dims[-1].startswith("*")):
        return entry.dims
    rest = ndim - len(entry.dims) + 1
    if entry.dims[-1] == "*state" and rest == 3:
        return (*entry.dims[:-1], "channel", "height", "width")
    label = entry.dims[-1][1:]
    return (*entry.dims[:-1], *([label] if rest == 1 else [f"{label}_{i}" for i in range(rest)]))
