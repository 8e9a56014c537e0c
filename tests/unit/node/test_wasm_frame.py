"""Frames: written and read back, and strangers' bytes refused without harm."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.worker.sandbox.wasm_frame import Entry, FrameError, Kind, compute_frame_size, decode_frame, encode_frame

entries = st.lists(
    st.builds(Entry, st.sampled_from(Kind), st.text(max_size=30), st.binary(max_size=100)),
    max_size=8,
    unique_by=lambda entry: entry.name,
)


@given(entries)
def test_a_frame_is_read_back_and_its_data_is_aligned(given_entries: list[Entry]) -> None:
    frame = encode_frame(given_entries)
    assert decode_frame(frame, 1000) == given_entries
    assert len(frame) == compute_frame_size([(len(e.name.encode()), len(e.data)) for e in given_entries])
    for index in range(len(given_entries)):
        assert struct.unpack_from("<I", frame, 16 + 24 * index + 12)[0] % 16 == 0


@settings(max_examples=300)
@given(entries.filter(bool), st.data())
def test_damage_is_a_frame_error_or_another_frame(given_entries: list[Entry], data: st.DataObject) -> None:
    frame = encode_frame(given_entries)
    for _ in range(3):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = decode_frame(frame, 1000)
    except FrameError as error:
        assert str(error)
    else:
        assert sum(len(entry.data) for entry in found) <= 1000


def test_entries_that_share_their_bytes_count_each_time() -> None:
    table = b"".join(struct.pack("<IIIIII", 1, 16 + 48 + i, 1, 64, 512, 0) for i in range(2))
    frame = struct.pack("<4sIII", b"CCWF", 1, 2, 0) + table + b"ab" + bytes(600)
    assert [entry.name for entry in decode_frame(frame, 1024)] == ["a", "b"]
    with pytest.raises(FrameError, match="more than 1023"):
        decode_frame(frame, 1023)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"CCWF" + bytes(11),
        struct.pack("<4sIII", b"CCWX", 1, 0, 0),
        struct.pack("<4sIII", b"CCWF", 2, 0, 0),
        struct.pack("<4sIII", b"CCWF", 1, 1, 0),
        struct.pack("<4sIII", b"CCWF", 1, 2**32 - 1, 0),
        struct.pack("<4sIIIIIIIII", b"CCWF", 1, 1, 0, 9, 16, 1, 16, 1, 0),
        struct.pack("<4sIIIIIIIII", b"CCWF", 1, 1, 0, 1, 2**32 - 1, 1, 16, 1, 0),
        struct.pack("<4sIIIIIIIII", b"CCWF", 1, 1, 0, 1, 16, 1, 2**32 - 1, 1, 0),
        struct.pack("<4sIIIIIIIII", b"CCWF", 1, 1, 0, 1, 16, 257, 16, 1, 0) + bytes(300),
        struct.pack("<4sIIIIIIIII", b"CCWF", 1, 1, 0, 1, 40, 1, 16, 1, 0) + b"\xff",
        encode_frame([Entry(Kind.FILE, "a", b""), Entry(Kind.FILE, "a", b"")]),
    ],
)
def test_other_bytes_are_refused(frame: bytes) -> None:
    with pytest.raises(FrameError):
        decode_frame(frame, 1000)


def test_what_does_not_fit_is_not_written() -> None:
    with pytest.raises(FrameError):
        encode_frame([Entry(Kind.FILE, "a" * 257, b"")])
    with pytest.raises(FrameError):
        encode_frame([Entry(Kind.FILE, str(i), b"") for i in range(1025)])
