"""What a model must look like: a format, and the names, types and shapes of its arrays.

A job's terms carry a schema, so that a model is data which every node can check before any program reads it. People
write an array as `float64[64,10]`; terms carry it as `[name, dtype, [dims]]`. Pure integers; reading the bytes of a
model is `crdtchain/adapters/models.py`.

Invariants:

1. Names are unique and sorted by their bytes, so that a schema has one form (and `raw` has one order).
2. All sizes are known without looking at a model, and bounded: `ELEMENT_COUNT_MAX` elements in all.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from crdtchain.errors import ModelError

FORMATS = ("npz", "npy", "safetensors", "raw")
"""The formats of a committed model; its file is `model.` and the format."""

ITEM_BYTES: Mapping[str, int] = {
    "float64": 8,
    "float32": 4,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}
"""Every allowed type of elements, and the bytes of one."""

ARRAY_COUNT_MAX = 256
DIM_COUNT_MAX = 8
DIM_MAX = 2**31 - 1
ELEMENT_COUNT_MAX = 2**31

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", re.ASCII)
_ARRAY = re.compile(r"([a-z0-9]{1,16})\[((?:[1-9][0-9]{0,9}(?:,[1-9][0-9]{0,9})*)?)\]", re.ASCII)


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One array of a model.

    Attributes:
        name: 1 to 100 letters, digits, `_`, `.` or `-`; not beginning with `.` or `-`.
        dtype: a key of `ITEM_BYTES`; little-endian where it matters.
        dims: 0 to 8 dimensions, each 1 … 2^31 - 1; none means a single number.
    """

    name: str
    dtype: str
    dims: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse what the terms of a job could not carry.

        Raises:
            ModelError: the name, type or a dimension is out of bounds.
        """
        if not _NAME.fullmatch(self.name):
            raise ModelError(f"{self.name!r} is no name for an array: use 1 to 100 letters, digits, _ . -")
        if self.dtype not in ITEM_BYTES:
            raise ModelError(f"array {self.name}: unknown type {self.dtype!r}; use one of {', '.join(ITEM_BYTES)}")
        if len(self.dims) > DIM_COUNT_MAX or not all(1 <= dim <= DIM_MAX for dim in self.dims):
            raise ModelError(f"array {self.name}: at most {DIM_COUNT_MAX} dimensions, each from 1 to {DIM_MAX}")

    @classmethod
    def parse(cls, name: str, text: str) -> Self:
        """Read the form that people write, such as `float64[64,10]`, or `float64[]` for a single number.

        Raises:
            ModelError: the text is not of that form, or out of bounds.
        """
        match = _ARRAY.fullmatch("".join(text.split(" ")))
        if match is None:
            raise ModelError(f"array {name}: write its type and shape like float64[64,10], not {text!r}")
        dtype, dims = match.groups()
        return cls(name, dtype, tuple(int(dim) for dim in dims.split(",")) if dims else ())

    def __str__(self) -> str:
        """The form that `parse` reads."""
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"

    @property
    def element_count(self) -> int:
        """How many numbers the array has; 1 when it has no dimensions."""
        count = 1
        for dim in self.dims:
            count *= dim
        return count

    @property
    def byte_count(self) -> int:
        """How many bytes the numbers take."""
        return self.element_count * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class ModelSchema:
    """A format and 1 to 256 arrays, sorted by name; `npy` has exactly one."""

    format: str
    arrays: tuple[ArraySpec, ...]

    def __post_init__(self) -> None:
        """Refuse a schema that no model could fit, or that has another form than its one.

        Raises:
            ModelError: unknown format, no or too many arrays, names not unique and sorted, too many elements.
        """
        if self.format not in FORMATS:
            raise ModelError(f"unknown model format {self.format!r}; use one of {', '.join(FORMATS)}")
        if not 1 <= len(self.arrays) <= ARRAY_COUNT_MAX:
            raise ModelError(f"a model has 1 to {ARRAY_COUNT_MAX} arrays, not {len(self.arrays)}")
        if self.format == "npy" and len(self.arrays) != 1:
            raise ModelError(f"a model in npy format is one array, not {len(self.arrays)}: use npz")
        names = [array.name.encode() for array in self.arrays]
        if any(first >= second for first, second in itertools.pairwise(names)):
            raise ModelError("the arrays of a model have unique names, sorted")
        if sum(array.element_count for array in self.arrays) > ELEMENT_COUNT_MAX:
            raise ModelError(f"a model has at most {ELEMENT_COUNT_MAX} elements")

    @classmethod
    def parse(cls, format: str, arrays: Mapping[str, str]) -> Self:
        """Read the form of a job file: a map of names to texts such as `float64[64,10]`, in any order.

        Raises:
            ModelError: an array's text or the whole is out of bounds.
        """
        return cls(format, tuple(ArraySpec.parse(name, arrays[name]) for name in sorted(arrays, key=str.encode)))

    @classmethod
    def from_terms(cls, format: str, arrays: Iterable[tuple[str, str, Iterable[int]]]) -> Self:
        """Read the form of a job's terms: rows of name, dtype and dims, already unique and sorted.

        Raises:
            ModelError: an array or the whole is out of bounds, or the rows are not in order.
        """
        return cls(format, tuple(ArraySpec(name, dtype, tuple(dims)) for name, dtype, dims in arrays))

    def to_terms(self) -> list[list[str | list[int]]]:
        """The rows that `from_terms` reads."""
        return [[array.name, array.dtype, list(array.dims)] for array in self.arrays]

    def to_texts(self) -> dict[str, str]:
        """The map that `parse` reads."""
        return {array.name: str(array) for array in self.arrays}

    @property
    def file_name(self) -> str:
        """The name of the committed model's file."""
        return f"model.{self.format}"

    @property
    def byte_count(self) -> int:
        """How many bytes the numbers of all arrays take: the length of the `raw` format."""
        return sum(array.byte_count for array in self.arrays)
