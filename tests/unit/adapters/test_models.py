"""Models from strangers: what is read, and everything else refused as a ModelError."""

import io
import json
import pickle
import struct
import time
import tracemalloc
import zipfile
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from crdtchain.adapters.models import parse_model, parse_npy, parse_predictions
from crdtchain.errors import ModelError
from crdtchain.learning.schema import ArraySpec, ModelSchema

ARRAYS = {"bias": np.arange(3, dtype=np.float64), "weights": np.arange(6, dtype=np.float32).reshape(2, 3) / 7}
TEXTS = {"bias": "float64[3]", "weights": "float32[2,3]"}
CODES = {"float64": "F64", "float32": "F32", "int64": "I64", "uint8": "U8", "bool": "BOOL"}


def write_npy(array: npt.NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def write_npz(arrays: dict[str, npt.NDArray[Any]], deflate: bool = False) -> bytes:
    stream = io.BytesIO()
    (np.savez_compressed if deflate else np.savez)(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


def write_zip(members: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED, comment: bytes = b"") -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        archive.comment = comment
        for name, data in members:
            archive.writestr(name, data)
    return stream.getvalue()


def write_safetensors(header: dict[str, Any] | bytes, numbers: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + numbers


def make_safetensors(arrays: dict[str, npt.NDArray[Any]]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "np"}}
    numbers = b""
    for name, array in arrays.items():
        offsets = [len(numbers), len(numbers) + array.nbytes]
        header[name] = {"dtype": CODES[array.dtype.name], "shape": list(array.shape), "data_offsets": offsets}
        numbers += array.tobytes()
    return write_safetensors(header, numbers)


MODELS = {
    "npz stored": ("npz", write_npz(ARRAYS)),
    "npz deflated": ("npz", write_npz(ARRAYS, deflate=True)),
    "safetensors": ("safetensors", make_safetensors(ARRAYS)),
    "raw": ("raw", ARRAYS["bias"].tobytes() + ARRAYS["weights"].tobytes()),
}


@pytest.mark.parametrize("case", MODELS)
def test_each_format_gives_the_arrays_back_bit_for_bit(case: str) -> None:
    format, data = MODELS[case]
    found = parse_model(data, ModelSchema.parse(format, TEXTS))
    assert list(found) == ["bias", "weights"]
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        assert found[name].tobytes() == array.tobytes()
        assert found[name].flags.writeable


@pytest.mark.parametrize("case", MODELS)
@pytest.mark.parametrize(
    "texts",
    [
        {"bias": "float64[3]"},
        {"bias": "float64[3]", "other": "float32[2,3]"},
        {"bias": "float64[3]", "weights": "float32[2,3]", "x": "float64[1]"},
        {"bias": "float64[3]", "weights": "float32[2,4]"},
        {"bias": "float64[4]", "weights": "float32[2,3]"},
    ],
)
def test_each_format_refuses_other_names_and_sizes(case: str, texts: dict[str, str]) -> None:
    format, data = MODELS[case]
    if format == "raw" and "other" in texts:
        pytest.skip("raw has no names")
    with pytest.raises(ModelError):
        parse_model(data, ModelSchema.parse(format, texts))


@pytest.mark.parametrize("case", ["npz stored", "npz deflated", "safetensors"])
@pytest.mark.parametrize("weights", ["float32[3,2]", "float32[6]", "int32[2,3]", "float32[1,2,3]"])
def test_formats_with_types_and_shapes_refuse_others_of_the_same_size(case: str, weights: str) -> None:
    format, data = MODELS[case]
    with pytest.raises(ModelError, match="weights"):
        parse_model(data, ModelSchema.parse(format, TEXTS | {"weights": weights}))


@pytest.mark.parametrize("case", MODELS)
def test_every_truncation_is_a_model_error(case: str) -> None:
    format, data = MODELS[case]
    schema = ModelSchema.parse(format, TEXTS)
    for length in range(0, len(data), 7):
        with pytest.raises(ModelError):
            parse_model(data[:length], schema)
    with pytest.raises(ModelError):
        parse_model(data + b"\0", schema)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("format", ["npz", "npy", "safetensors", "raw"])
def test_values_that_are_not_finite_are_refused(format: str, value: float) -> None:
    array = np.array([1.0, value])
    data = {
        "npz": write_npz({"a": array}),
        "npy": write_npy(array),
        "safetensors": make_safetensors({"a": array}),
        "raw": array.tobytes(),
    }[format]
    with pytest.raises(ModelError, match="not finite"):
        parse_model(data, ModelSchema.parse(format, {"a": "float64[2]"}))


def test_a_bool_that_is_neither_0_nor_1_is_refused() -> None:
    schema = ModelSchema.parse("raw", {"a": "bool[2]"})
    assert parse_model(b"\0\1", schema)["a"].tolist() == [False, True]
    with pytest.raises(ModelError, match="bool"):
        parse_model(b"\0\2", schema)


def test_pickles_are_refused_without_being_read() -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (pytest.fail, ("a pickle was read",))

    stream = io.BytesIO()
    np.save(stream, np.array([Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(ModelError):
        parse_npy(stream.getvalue(), 2**20)
    with pytest.raises(ModelError):
        parse_model(write_zip([("a.npy", stream.getvalue())]), ModelSchema.parse("npz", {"a": "float64[30]"}))
    with pytest.raises(ModelError):
        parse_model(pickle.dumps(Trap()), ModelSchema.parse("npz", {"a": "float64[1]"}))


def test_a_zip_bomb_is_refused_before_it_is_unpacked() -> None:
    bomb = write_npz({"a": np.zeros(12_500_000)}, deflate=True)
    assert len(bomb) < 200_000
    tracemalloc.start()
    with pytest.raises(ModelError, match="unpacked"):
        parse_model(bomb, ModelSchema.parse("npz", {"a": "float64[3]"}))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


def test_a_member_longer_than_it_declares_is_refused() -> None:
    honest = bytearray(write_npz({"a": np.zeros(1000)}, deflate=True))
    declared = struct.pack("<I", 8128)
    assert honest.count(declared) >= 1
    lying = bytes(honest).replace(declared, struct.pack("<I", 152))
    with pytest.raises(ModelError):
        parse_model(lying, ModelSchema.parse("npz", {"a": "float64[3]"}))


def test_a_huge_central_directory_is_never_walked() -> None:
    entry = struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 20, 20, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0) + b"a.npy"
    for count in (1, 65535):
        directory = entry * 400_000
        data = directory + struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, count, count, len(directory), 0, 0)
        started = time.process_time()
        with pytest.raises(ModelError):
            parse_model(data, ModelSchema.parse("npz", {"a": "float64[3]"}))
        assert time.process_time() - started < 0.1


@pytest.mark.parametrize(
    "data",
    [
        write_zip([("a.npy", write_npy(np.zeros(3)))], zipfile.ZIP_BZIP2),
        write_zip([("a.npy", write_npy(np.zeros(3)))], zipfile.ZIP_LZMA),
        write_zip([("a.npy", write_npy(np.zeros(3)))], comment=b"hello"),
        write_zip([("../a.npy", write_npy(np.zeros(3)))]),
        write_zip([("a.npy", write_npy(np.zeros(3))), ("b.npy", write_npy(np.zeros(3)))]),
        write_zip([("a.npy", b"")]),
        b"",
        b"PK\x05\x06" + bytes(18),
    ],
)
def test_unusual_archives_are_refused(data: bytes) -> None:
    with pytest.raises(ModelError):
        parse_model(data, ModelSchema.parse("npz", {"a": "float64[3]"}))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_repeated_member_is_refused() -> None:
    data = write_zip([("a.npy", write_npy(np.zeros(3))), ("a.npy", write_npy(np.ones(3)))])
    with pytest.raises(ModelError):
        parse_model(data, ModelSchema.parse("npz", {"a": "float64[3]", "b": "float64[3]"}))


@pytest.mark.parametrize(
    "header",
    [
        b"[]", b"{", b"\xff", b"[" * 100_000, b'{"a": 1}', b'{"a": {}}',
        b'{"a": {"dtype": "F64", "shape": [2], "data_offsets": [0, 16]}, '
        b'"a": {"dtype": "F64", "shape": [2], "data_offsets": [0, 16]}}',
        b'{"a": {"dtype": "F64", "shape": [2], "data_offsets": [8, 24]}}',
        b'{"a": {"dtype": "F64", "shape": [2], "data_offsets": [-8, 8]}}',
        b'{"a": {"dtype": "F64", "shape": [2], "data_offsets": [0, 16.0]}}',
        b'{"a": {"dtype": "F64", "shape": [2], "data_offsets": [0, 8]}}',
        b'{"a": {"dtype": "I64", "shape": [2], "data_offsets": [0, 16]}}',
        b'{"a": {"dtype": ["F64"], "shape": [2], "data_offsets": [0, 16]}}',
        b'{"a": {"dtype": "F64", "shape": [2], "data_offsets": [0, 16], "x": 1}}',
    ],
)  # fmt: skip
def test_malformed_safetensors_headers_are_refused(header: bytes) -> None:
    with pytest.raises(ModelError):
        parse_model(write_safetensors(header, bytes(16)), ModelSchema.parse("safetensors", {"a": "float64[2]"}))


def test_safetensors_arrays_may_neither_overlap_nor_leave_gaps() -> None:
    entry = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}
    schema = ModelSchema.parse("safetensors", {"a": "uint8[4]", "b": "uint8[4]"})
    apart = write_safetensors({"b": entry, "a": entry | {"data_offsets": [4, 8]}}, bytes(range(8)))
    assert parse_model(apart, schema)["a"].tolist() == [4, 5, 6, 7]
    with pytest.raises(ModelError, match="overlap"):
        parse_model(write_safetensors({"a": entry, "b": entry}, bytes(8)), schema)


def test_arrays_in_fortran_order_mean_the_same() -> None:
    array = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    data = write_npy(array)
    assert b"True" in data
    assert parse_npy(data, 1000).tolist() == array.tolist()


def test_predictions_are_numbers_in_one_or_two_dimensions() -> None:
    for array in (np.zeros(3), np.zeros((3, 2), np.float32), np.zeros(3, np.int64), np.zeros(3, np.uint8)):
        assert parse_predictions(write_npy(array), 4096).shape == array.shape
    odd_types = (np.zeros(3, bool), np.array(["a"]), np.zeros(3, ">f8"), np.zeros(3, complex))
    for wrong in (np.zeros(()), np.zeros((1, 1, 1)), np.zeros(0), np.array([np.nan]), np.array([[np.inf]]), *odd_types):
        with pytest.raises(ModelError):
            parse_predictions(write_npy(wrong), 4096)
    with pytest.raises(ModelError, match="more than"):
        parse_predictions(write_npy(np.zeros(1000)), 4096)


@given(hnp.arrays(hnp.scalar_dtypes() | st.just(np.dtype("float64")), hnp.array_shapes(min_dims=0, min_side=0)))
def test_whatever_numpy_writes_is_read_back_or_refused(array: npt.NDArray[Any]) -> None:
    data = write_npy(array)
    try:
        found = parse_npy(data, 2**20)
    except ModelError:
        assert array.dtype.name not in ("float64", "float32", "int64", "uint8") or array.dtype.byteorder == ">"
    else:
        assert found.tobytes() == np.ascontiguousarray(array).tobytes()


@settings(max_examples=300)
@given(st.sampled_from(sorted(MODELS)), st.data())
def test_no_damage_escapes_as_another_exception(case: str, data: st.DataObject) -> None:
    format, model = MODELS[case]
    damaged = bytearray(model)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    schema = ModelSchema(format, tuple(ArraySpec.parse(name, text) for name, text in TEXTS.items()))
    try:
        found = parse_model(bytes(damaged), schema)
    except ModelError as error:
        assert str(error)
    else:
        assert all(np.all(np.isfinite(array)) for array in found.values())
        assert {name: array.shape for name, array in found.items()} == {"bias": (3,), "weights": (2, 3)}
