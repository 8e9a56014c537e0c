"""Judge files of test vectors with this installation: what `crdtchain doctor --vectors FILE.json` does.

A document has `cases`, each with an `id` and `accept`, the verdict that the protocol gives. The fields of a case say
what is judged: `hex` is one document of the encoding profile; `key`, `msg` and `sig`, all hex, are a signature. A
case or the whole document may say `"links": false`: then tag 42 is refused like any other tag.

Bytes are accepted here only when they also encode to themselves again, as all that the profile accepts must.
"""

from __future__ import annotations

from dataclasses import dataclass

from crdtchain import codec
from crdtchain.adapters.keys import is_accepted
from crdtchain.errors import DecodeError, UsageError


@dataclass(frozen=True, slots=True)
class Judged:
    """One case, as it should be judged and as it was."""

    id: str
    """Names the case in its file."""
    expected: bool
    """Whether the protocol accepts it."""
    got: bool
    """Whether this installation does."""
    code: str | None
    """Why this installation refuses an encoding: the code of the DecodeError, or `round_trip`."""

    @property
    def equal(self) -> bool:
        """Whether this installation agrees with the protocol."""
        return self.expected is self.got


def judge_vectors(document: object) -> list[Judged]:
    """Judge each case of a decoded JSON document, in its order.

    Raises:
        UsageError: the document is not of the format above.
    """
    if not isinstance(document, dict) or not isinstance(document.get("cases"), list):
        raise UsageError("a file of vectors is a JSON object with a list of cases")
    links = _get_flag(document, "links", "the file")
    return [_judge(case, links, index) for index, case in enumerate(document["cases"])]


def _judge(case: object, links: bool, index: int) -> Judged:
    """Judge one case by the fields it has."""
    if not isinstance(case, dict) or not isinstance(case.get("id"), str) or not isinstance(case.get("accept"), bool):
        raise UsageError(f"case {index} needs an id, which is a text, and accept, which is true or false")
    name = case["id"]
    if "hex" in case:
        code = _find_fault(_get_bytes(case, "hex"), links and _get_flag(case, "links", name))
        return Judged(name, case["accept"], code is None, code)
    if not case.keys() >= {"key", "msg", "sig"}:
        raise UsageError(f"case {name} has neither hex, nor key, msg and sig")
    got = is_accepted(*(_get_bytes(case, field) for field in ("key", "msg", "sig")))
    return Judged(name, case["accept"], got, None)


def _find_fault(data: bytes, links: bool) -> str | None:
    """Return why an encoding is refused, None when it is accepted."""
    try:
        codec.validate_profile(data, links=links)
        value = codec.decode(data)
    except DecodeError as error:
        return error.code
    return None if codec.encode(value, bounded=True) == data else "round_trip"


def _get_bytes(case: dict[str, object], field: str) -> bytes:
    text = case[field]
    try:
        if isinstance(text, str):
            return bytes.fromhex(text)
    except ValueError:
        pass
    raise UsageError(f"{field} of case {case['id']} is not hex")


def _get_flag(owner: dict[str, object], field: str, name: str) -> bool:
    flag = owner.get(field, True)
    if not isinstance(flag, bool):
        raise UsageError(f"{field} of {name} is neither true nor false")
    return flag
