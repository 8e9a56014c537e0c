"""A program's output as docker sends it: frames to bytes, bytes to lines, lines to progress.

Everything here is pure. A frame is 8 bytes of header (stream number, three zeros, length, big-endian) and its payload.
Lines of stdout that are JSON objects with an `epoch` and a finite `loss` are progress; anything else is log, and
nothing that a program prints can raise.
"""

from __future__ import annotations

import json
import math
import struct

from node.worker.sandbox.base import Progress

LOG_BYTES_MAX = 1024 * 1024
TAIL_BYTES_MAX = 8 * 1024
LINE_BYTES_MAX = 4096
EPOCH_MAX = 2**31 - 1
FIELDS_MAX = 16
STDOUT = 1
_HEADER = struct.Struct(">B3xL")


class LogReader:
    """Counts and keeps what a program prints; `feed` returns the progress found in it."""

    def __init__(self, bytes_max: int = LOG_BYTES_MAX) -> None:
        self.log_bytes = 0
        self._bytes_max = bytes_max
        self._header = b""
        self._stream = 0
        self._payload_left = 0
        self._line = bytearray()
        self._line_too_long = False
        self._tail = bytearray()

    @property
    def over(self) -> bool:
        """Whether more was printed than is allowed."""
        return self.log_bytes > self._bytes_max

    @property
    def tail(self) -> str:
        """The last bytes as text; control characters, which could drive a terminal, are replaced."""
        text = bytes(self._tail).decode("utf-8", "replace")
        return "".join(char if char.isprintable() or char in "\n\t" else "�" for char in text)

    def feed(self, data: bytes) -> list[Progress]:
        """Take bytes as they came off the wire, cut anywhere."""
        found: list[Progress] = []
        view = memoryview(data)
        while view and not self.over:
            if self._payload_left == 0:
                need = _HEADER.size - len(self._header)
                self._header += bytes(view[:need])
                view = view[need:]
                if len(self._header) == _HEADER.size:
                    self._stream, self._payload_left = _HEADER.unpack(self._header)
                    self._header = b""
                continue
            piece = bytes(view[: self._payload_left])
            view = view[len(piece) :]
            self._payload_left -= len(piece)
            found += self._take(piece)
        return found

    def _take(self, piece: bytes) -> list[Progress]:
        self.log_bytes += len(piece)
        self._tail += piece[-TAIL_BYTES_MAX:]
        del self._tail[:-TAIL_BYTES_MAX]
        return self._take_stdout(piece) if self._stream == STDOUT else []

    def _take_stdout(self, piece: bytes) -> list[Progress]:
        found: list[Progress] = []
        *whole, rest = piece.split(b"\n")
        for part in whole:
            self._add_to_line(part)
            progress = None if self._line_too_long else parse_progress(bytes(self._line))
            if progress is not None:
                found.append(progress)
            self._line.clear()
            self._line_too_long = False
        self._add_to_line(rest)
        return found

    def _add_to_line(self, part: bytes) -> None:
        if len(self._line) + len(part) > LINE_BYTES_MAX:
            self._line_too_long = True
            self._line.clear()
        elif not self._line_too_long:
            self._line += part


def parse_progress(line: bytes) -> Progress | None:
    """Return the progress that a line of stdout reports, or None if it is just log."""
    if not line.lstrip().startswith(b"{"):
        return None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    epoch, loss = value.get("epoch"), _find_number(value.get("loss"))
    if type(epoch) is not int or not 0 <= epoch <= EPOCH_MAX or loss is None:
        return None
    return Progress(epoch=epoch, loss=float(loss), fields=_find_fields(value))


def _find_number(value: object) -> float | int | None:
    """Return a finite number that a float can hold, or None."""
    if type(value) not in (int, float):
        return None
    assert isinstance(value, int | float)
    if isinstance(value, int):
        return value if abs(value) < 2**63 else None
    return value if math.isfinite(value) else None


def _find_fields(value: dict[str, object]) -> dict[str, float | int | str]:
    """Return the other small, plain fields of a line."""
    fields: dict[str, float | int | str] = {}
    for key, item in value.items():
        if key in ("epoch", "loss") or len(key) > 64 or len(fields) == FIELDS_MAX:
            continue
        if isinstance(item, str) and len(item) <= 256 and item.isprintable():
            fields[key] = item
        elif (number := _find_number(item)) is not None:
            fields[key] = number
    return fields
