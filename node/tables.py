"""Read tables of TOML files strictly: every key known, every value of its type and within its bounds.

What people write by hand is refused with one sentence that names the key, the value and what would be right; an unknown
key is answered with the nearest known one. Used for job files and policies.
"""

from __future__ import annotations

import contextlib
import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from crdtchain.errors import UsageError
from crdtchain.limits import INT_MAX

MICROS: Final = 1_000_000
_DURATION = re.compile(r"(?:([0-9]{1,9})d)?(?:([0-9]{1,9})h)?(?:([0-9]{1,9})m)?(?:([0-9]{1,9})s)?(?:([0-9]{1,9})ms)?")
_DURATION_UNITS_MS: Final = (86_400_000, 3_600_000, 60_000, 1_000, 1)
_DECIMAL = re.compile(r"([0-9]{1,10})(?:\.([0-9]{1,6}))?", re.ASCII)


def load_toml(path: Path, what: str) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        UsageError: it is missing, unreadable, or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"there is no {what} {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UsageError(f"the {what} {path} can't be read: {reason}") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"the {what} {path} is not TOML: {error}") from None


def find_nearest(name: str, known: Iterable[str]) -> str:
    """Return the part of a sentence that helps with an unknown name: the nearest known one, or all."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(names)}"


def parse_duration_ms(text: str) -> int | None:
    """Read a length of time such as `90s`, `10m`, `1h30m` or `2d`, in ms; None when it is none."""
    match = _DURATION.fullmatch(text)
    if match is None or not any(match.groups()):
        return None
    return sum(int(part or 0) * unit for part, unit in zip(match.groups(), _DURATION_UNITS_MS, strict=True))


def format_duration(duration_ms: int) -> str:
    """Write a length of time in the form that `parse_duration_ms` reads."""
    parts = []
    for name, unit in zip(("d", "h", "m", "s", "ms"), _DURATION_UNITS_MS, strict=True):
        count, duration_ms = divmod(duration_ms, unit)
        if count:
            parts.append(f"{count}{name}")
    return "".join(parts) or "0s"


def parse_micros(text: str) -> int | None:
    """Read a decimal number with at most six decimals as millionths; None when it is none."""
    match = _DECIMAL.fullmatch(text)
    if match is None:
        return None
    micros = int(match[1]) * MICROS + int((match[2] or "").ljust(6, "0"))
    return micros if micros <= INT_MAX else None


def format_micros(micros: int) -> str:
    """Write millionths as a decimal number."""
    whole, rest = divmod(micros, MICROS)
    return f"{whole}.{rest:06d}"


class Table:
    """One table: typed ways to take its values.

    Args:
        values: as tomllib gives them.
        name: the table's name with a dot behind it, or nothing at the top: keys are named by it in errors.
        known: all keys there may be.

    Raises:
        UsageError: a key is unknown.
    """

    def __init__(self, values: Mapping[str, Any], name: str, known: Sequence[str]) -> None:
        self._values = values
        self._name = name
        for key in values:
            if key not in known:
                raise UsageError(f"unknown key {name}{key}: {find_nearest(key, known)}")

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def fault(self, key: str, what: str) -> UsageError:
        """Make the error for a value: key, value, and what would be right."""
        value = self._values.get(key)
        shown = (
            str(value).lower()
            if isinstance(value, bool)
            else str(value)
            if isinstance(value, datetime)
            else repr(value)
        )
        return UsageError(f"{self._name}{key} is {shown if len(shown) <= 80 else shown[:77] + '...'}: {what}")

    def raw(self, key: str, default: Any = None) -> Any:
        """Return a value as it is.

        Raises:
            UsageError: it is missing, and there is no default.
        """
        if key in self._values:
            return self._values[key]
        if default is None:
            raise UsageError(f"{self._name}{key} is missing")
        return default

    def text(self, key: str, default: str | None = None) -> str:
        """Return a text that is not empty."""
        value = self.raw(key, default)
        if not isinstance(value, str) or not value:
            raise self.fault(key, "write a text")
        return value

    def choice(self, key: str, choices: Sequence[str], default: str | None = None) -> str:
        """Return one of some words."""
        value = self.raw(key, default)
        if value not in choices:
            raise self.fault(
                key, f"use {' or '.join(choices)}" if len(choices) < 3 else f"use one of {', '.join(choices)}"
            )
        return str(value)

    def integer(self, key: str, least: int, most: int = INT_MAX, default: int | None = None, unit: str = "") -> int:
        """Return a whole number within bounds."""
        value = self.raw(key, default)
        unit = f" {unit}" if unit else ""
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.fault(key, f"write a whole number{' of' + unit if unit else ''}")
        if value < least:
            raise self.fault(key, f"the least is {least}{unit}")
        if value > most:
            raise self.fault(key, f"the most is {most}{unit}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false."""
        value = self._values.get(key, default)
        if not isinstance(value, bool):
            raise self.fault(key, "write true or false")
        return value

    def texts(self, key: str, most: int, least: int = 0, default: Sequence[str] | None = None) -> tuple[str, ...]:
        """Return a list of texts."""
        value = self._values.get(key, None if default is None else list(default))
        if value is None:
            raise UsageError(f"{self._name}{key} is missing")
        if not isinstance(value, list) or any(not isinstance(item, str) for item in value):
            raise self.fault(key, 'write a list of texts, such as ["a", "b"]')
        if not least <= len(value) <= most:
            raise self.fault(key, f"{least} to {most} entries are allowed")
        return tuple(value)

    def micros(self, key: str, default: int) -> int:
        """Return a loss in millionths, written as a decimal text such as "0.25" or as a whole number."""
        value = self._values.get(key)
        if value is None:
            return default
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        micros = parse_micros(value) if isinstance(value, str) else None
        if micros is None:
            raise self.fault(
                key, 'write a decimal number in quotes, 0 or more, with at most 6 decimals, such as "0.25"'
            )
        return micros

    def duration_ms(self, key: str) -> int:
        """Return a length of time in ms."""
        value = self.raw(key)
        duration = parse_duration_ms(value) if isinstance(value, str) else None
        if duration is None:
            raise self.fault(key, 'write a length of time such as "90s", "10m" or "1h30m"')
        return duration

    def time_ms(self, key: str) -> int:
        """Return a moment in ms since the Unix epoch."""
        value = self.raw(key)
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                value = datetime.fromisoformat(value)
        if not isinstance(value, datetime) or value.tzinfo is None:
            raise self.fault(key, "write a moment with its time zone, such as 2026-12-01T00:00:00Z")
        return round(value.timestamp() * 1000)

    def table(self, key: str, known: Sequence[str], optional: bool = False) -> Table:
        """Return a table within this one, empty when it is optional and missing."""
        value = self._values.get(key)
        if value is None and optional:
            value = {}
        if value is None:
            raise UsageError(f"the table [{self._name}{key}] is missing")
        if not isinstance(value, dict):
            raise self.fault(key, f"write a table [{self._name}{key}]")
        return Table(value, f"{self._name}{key}.", known)

    def items(self, key: str) -> dict[str, Any]:
        """Return a table of names of people's own choice, as it is; empty when it is missing."""
        value = self._values.get(key, {})
        if not isinstance(value, dict):
            raise self.fault(key, f"write a table [{self._name}{key}]")
        return value
