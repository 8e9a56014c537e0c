"""Read strangers' models and predictions as data, and nothing but data.

Theory of operation. A file is checked against what its job's schema says *before* anything of its size is allocated:
names, types, shapes and byte counts must be exactly those, and every value finite. No pickle, no object arrays, no
Python literal is evaluated: an npy header must be of the one form that a strict pattern allows. Zip archives are
checked in their last 22 bytes first, so that a huge central directory is never walked. Whatever is wrong is a
`ModelError` with one sentence; no exception of a decoder escapes.

Formats: `npz` (stored or deflated, a member NAME.npy for each array), `npy`, `safetensors`, and `raw`, the arrays in
schema order, little-endian, C order, concatenated.
"""

from __future__ import annotations

import io
import itertools
import json
import re
import struct
import zipfile
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from crdtchain.errors import ModelError
from crdtchain.learning.schema import ITEM_BYTES, ArraySpec, ModelSchema

Array = npt.NDArray[Any]

NPY_HEADER_BYTES_MAX = 4096
SAFETENSORS_HEADER_BYTES_MAX = 2**20
ZIP_ENTRY_BYTES_MAX = 512
"""What one array may take in a zip's central directory: 46 bytes, its name, and some extra fields."""

_NPY_TYPES = {
    "<f8": "float64",
    "<f4": "float32",
    "<i8": "int64",
    "<i4": "int32",
    "<i2": "int16",
    "|i1": "int8",
    "|u1": "uint8",
    "|b1": "bool",
}
_SAFETENSORS_TYPES = {
    "F64": "float64",
    "F32": "float32",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
_NPY_HEADER = re.compile(
    r"\{'descr': ?'([<|][a-z][0-9])', ?'fortran_order': ?(True|False), ?"
    r"'shape': ?\(((?:[0-9]{1,10}, ?)*(?:[0-9]{1,10})?)\),? ?\} *\n?",
    re.ASCII,
)
_ZIP_END = struct.Struct("<4sHHHHIIH")


def parse_model(data: bytes, schema: ModelSchema) -> dict[str, Array]:
    """Read a committed model by its job's schema; the arrays are in schema order.

    Raises:
        ModelError: the bytes are not exactly such a model.
    """
    match schema.format:
        case "npz":
            arrays = _parse_npz(data, schema)
        case "npy":
            spec = schema.arrays[0]
            arrays = {spec.name: _check_shape(parse_npy(data, spec.byte_count + NPY_HEADER_BYTES_MAX), spec)}
        case "safetensors":
            arrays = _parse_safetensors(data, schema)
        case _:
            arrays = _parse_raw(data, schema)
    for name, array in arrays.items():
        _check_finite(array, f"array {name}")
    return arrays


def parse_predictions(data: bytes, bytes_max: int) -> Array:
    """Read predictions.npy: numbers, with one or two dimensions, all finite.

    Raises:
        ModelError: anything else.
    """
    array = parse_npy(data, bytes_max)
    if array.ndim not in (1, 2) or array.size == 0 or array.dtype == np.bool_:
        raise ModelError(f"predictions are a column or a matrix of numbers, not {array.dtype}{list(array.shape)}")
    _check_finite(array, "the predictions")
    return array


def parse_npy(data: bytes, bytes_max: int) -> Array:
    """Read one npy file of any allowed type; the result is C-ordered and its own memory.

    Raises:
        ModelError: longer than `bytes_max`, not an npy file, a type that is not allowed, or a wrong length.
    """
    if len(data) > bytes_max:
        raise ModelError(f"the npy file has {len(data)} bytes, more than {bytes_max}")
    if len(data) < 12 or data[:6] != b"\x93NUMPY" or (data[6], data[7]) not in ((1, 0), (2, 0), (3, 0)):
        raise ModelError("not an npy file of version 1, 2 or 3")
    start = 10 if data[6] == 1 else 12
    length = int.from_bytes(data[8:start], "little")
    if length > NPY_HEADER_BYTES_MAX or start + length > len(data):
        raise ModelError("the npy header doesn't fit")
    match = _NPY_HEADER.fullmatch(data[start : start + length].decode("latin-1"))
    if match is None or match[1] not in _NPY_TYPES:
        raise ModelError("the npy header is not one of a plain little-endian array of an allowed type")
    shape = tuple(int(dim) for dim in match[3].replace(",", " ").split())
    if len(shape) == 1 and "," not in match[3]:
        raise ModelError("the npy header's shape is no tuple")
    count = 1
    for dim in shape:
        count *= dim
    dtype = _NPY_TYPES[match[1]]
    if len(shape) > 8 or count * ITEM_BYTES[dtype] != len(data) - start - length:
        raise ModelError(f"the npy file has not the {count} elements that its header says")
    flat = _read_numbers(memoryview(data)[start + length :], dtype, "the npy file")
    if match[2] == "True":
        return np.ascontiguousarray(flat.reshape(shape, order="F"))
    return flat.reshape(shape)


def _read_numbers(view: memoryview, dtype: str, what: str) -> Array:
    """Copy little-endian numbers out of a buffer whose length was checked."""
    if dtype == "bool":
        numbers = np.frombuffer(view, dtype=np.uint8)
        if numbers.size and numbers.max() > 1:
            raise ModelError(f"{what} has a bool that is neither 0 nor 1")
        return numbers.astype(np.bool_)
    little = np.dtype(dtype).newbyteorder("<")
    return np.frombuffer(view, dtype=little).astype(np.dtype(dtype))


def _check_shape(array: Array, spec: ArraySpec) -> Array:
    if array.dtype.name != spec.dtype or array.shape != spec.dims:
        found = f"{array.dtype.name}[{','.join(map(str, array.shape))}]"
        raise ModelError(f"array {spec.name} is {found}, not {spec}")
    return array


def _check_finite(array: Array, what: str) -> None:
    if array.dtype.kind == "f" and not np.all(np.isfinite(array)):
        raise ModelError(f"{what} has a value that is not finite")


def _parse_raw(data: bytes, schema: ModelSchema) -> dict[str, Array]:
    if len(data) != schema.byte_count:
        raise ModelError(f"the raw model has {len(data)} bytes, not {schema.byte_count}")
    arrays, at, view = {}, 0, memoryview(data)
    for spec in schema.arrays:
        part = view[at : at + spec.byte_count]
        arrays[spec.name] = _read_numbers(part, spec.dtype, f"array {spec.name}").reshape(spec.dims)
        at += spec.byte_count
    return arrays


def _check_zip_end(data: bytes, count: int) -> None:
    """Refuse, by its last bytes, an archive whose directory is not that of `count` entries: walking it costs."""
    end = len(data) - _ZIP_END.size
    if end < 0:
        raise ModelError("the npz file is too short")
    magic, disk, disk2, here, total, size, offset, comment = _ZIP_END.unpack_from(data, end)
    if magic != b"PK\x05\x06" or disk or disk2 or comment or data[max(end - 20, 0) : end][:4] == b"PK\x06\x07":
        raise ModelError("the npz file is no plain zip archive (no comment, no zip64 directory)")
    if here != count or total != count:
        raise ModelError(f"the npz file has {total} arrays, not {count}")
    if size > count * ZIP_ENTRY_BYTES_MAX or offset + size != end:
        raise ModelError("the npz file's directory is not where and what it should be")


def _parse_npz(data: bytes, schema: ModelSchema) -> dict[str, Array]:
    _check_zip_end(data, len(schema.arrays))
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {info.filename: info for info in archive.infolist()}
            if sorted(members) != sorted(f"{spec.name}.npy" for spec in schema.arrays):
                raise ModelError("the npz file has not the arrays that the schema names")
            _check_sizes(members, schema)
            return {spec.name: _read_member(archive, members[f"{spec.name}.npy"], spec) for spec in schema.arrays}
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError) as error:
        raise ModelError(f"the npz file is damaged: {error}") from error
    except (NotImplementedError, RuntimeError, OverflowError, IndexError, KeyError) as error:
        raise ModelError(f"the npz file uses what is not allowed: {error}") from error


def _check_sizes(members: dict[str, zipfile.ZipInfo], schema: ModelSchema) -> None:
    for spec in schema.arrays:
        info = members[f"{spec.name}.npy"]
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 0x1:
            raise ModelError(f"array {spec.name} is encrypted, or compressed other than by deflate")
        if not spec.byte_count < info.file_size <= spec.byte_count + NPY_HEADER_BYTES_MAX:
            raise ModelError(f"array {spec.name} has {info.file_size} bytes unpacked, not {spec.byte_count}")


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, spec: ArraySpec) -> Array:
    with archive.open(info) as member:
        # The declared size was checked, but it is a claim: never read beyond it.
        unpacked = member.read(info.file_size)
        if len(unpacked) != info.file_size or member.read(1):
            raise ModelError(f"array {spec.name} is not as long as the npz file says")
    return _check_shape(parse_npy(unpacked, len(unpacked)), spec)


def _refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ModelError("the safetensors header names something twice")
    return found


def _read_safetensors_header(data: bytes) -> tuple[dict[str, Any], int]:
    if len(data) < 8:
        raise ModelError("the safetensors file is too short")
    length = int.from_bytes(data[:8], "little")
    if length > SAFETENSORS_HEADER_BYTES_MAX or 8 + length > len(data):
        raise ModelError("the safetensors header doesn't fit")
    try:
        header = json.loads(data[8 : 8 + length].decode(), object_pairs_hook=_refuse_repeats)
    except (ValueError, RecursionError) as error:
        raise ModelError("the safetensors header is not JSON") from error
    if not isinstance(header, dict):
        raise ModelError("the safetensors header is no object")
    header.pop("__metadata__", None)
    return header, 8 + length


def _parse_safetensors(data: bytes, schema: ModelSchema) -> dict[str, Array]:
    header, start = _read_safetensors_header(data)
    if sorted(header) != sorted(spec.name for spec in schema.arrays):
        raise ModelError("the safetensors file has not the arrays that the schema names")
    if len(data) - start != schema.byte_count:
        raise ModelError(f"the safetensors file has {len(data) - start} bytes of numbers, not {schema.byte_count}")
    arrays, ranges, view = {}, [], memoryview(data)[start:]
    for spec in schema.arrays:
        entry = header[spec.name]
        if not isinstance(entry, dict) or sorted(entry) != ["data_offsets", "dtype", "shape"]:
            raise ModelError(f"array {spec.name} has a malformed entry in the safetensors header")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or _SAFETENSORS_TYPES.get(dtype) != spec.dtype or shape != list(spec.dims):
            raise ModelError(f"array {spec.name} is {dtype!r}{shape!r}, not {spec}")
        if not _is_range(offsets) or offsets[1] - offsets[0] != spec.byte_count or offsets[1] > len(view):
            raise ModelError(f"array {spec.name} has offsets that don't fit its shape")
        ranges.append((offsets[0], offsets[1]))
        part = view[offsets[0] : offsets[1]]
        arrays[spec.name] = _read_numbers(part, spec.dtype, f"array {spec.name}").reshape(spec.dims)
    ranges.sort()
    if any(first[1] != second[0] for first, second in itertools.pairwise(ranges)):
        raise ModelError("the arrays in the safetensors file overlap or leave gaps")
    return arrays


def _is_range(offsets: object) -> bool:
    return (
        isinstance(offsets, list)
        and len(offsets) == 2
        and all(type(offset) is int and offset >= 0 for offset in offsets)
    )
