"""What the API takes: JSON bodies, checked by type, and turned into bodies of ops."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from crdtchain import codec, limits
from crdtchain.codec import Link
from crdtchain.errors import UsageError
from crdtchain.ops import Job
from crdtchain.views import DID_FIELDS

T = TypeVar("T")

Cid = Annotated[str, Meta(min_length=59, max_length=59, description="A CID: multibase b, base32.")]
Did = Annotated[str, Meta(min_length=50, max_length=60, description="A did:key of an Ed25519 key.")]
Amount = Annotated[int, Meta(ge=0, le=limits.INT_MAX)]
Positive = Annotated[int, Meta(ge=1, le=limits.INT_MAX)]


class StakeInput(Struct, frozen=True, forbid_unknown_fields=True):
    """Put down a job's stake."""

    job: Cid


class BidInput(Struct, frozen=True, forbid_unknown_fields=True):
    """Bid on a job with a model that was put as a blob."""

    job: Cid
    loss: Amount
    """Announced loss, micros."""
    model: Cid
    """The model's blob; only a commitment to it is published."""


class RevealInput(Struct, frozen=True, forbid_unknown_fields=True):
    """Reveal the model of one's bid; the node finds it among its blobs."""

    bid: Cid


class VoteInput(Struct, frozen=True, forbid_unknown_fields=True):
    """Vote on a reveal."""

    reveal: Cid
    verdict: Literal["valid", "cheat", "missing"]
    loss: Amount | None = None
    """Measured loss, micros."""


class TransferInput(Struct, frozen=True, forbid_unknown_fields=True):
    """Transfer credits."""

    to: Did
    amount: Positive
    memo: Annotated[str, Meta(max_length=limits.MEMO_BYTES_MAX)] | None = None


class ClaimInput(Struct, frozen=True, forbid_unknown_fields=True):
    """Claim what a job or transfer has for oneself."""

    of: Cid


class ProfileInput(Struct, frozen=True, forbid_unknown_fields=True):
    """Say how one wants to be called."""

    name: Annotated[str, Meta(max_length=limits.NAME_BYTES_MAX)]
    about: Annotated[str, Meta(max_length=limits.ABOUT_BYTES_MAX)] = ""


def decode_json(data: bytes) -> object:
    """Decode a JSON body.

    Raises:
        UsageError: it is not JSON.
    """
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"the body is not JSON: {error}") from None


def read_input(data: bytes, target: type[T]) -> T:
    """Decode a JSON body into one of the structs above.

    Raises:
        UsageError: it does not fit.
    """
    try:
        return msgspec.convert(decode_json(data), target)
    except msgspec.ValidationError as error:
        raise UsageError(f"the body does not fit: {error}") from None


def read_terms(data: bytes) -> Job:
    """Decode a job's terms, in the form that `views.body_to_json` shows them in.

    Raises:
        UsageError: they do not fit.
    """
    value = decode_json(data)
    if not isinstance(value, dict):
        raise UsageError("the body must be a JSON object: the terms of a job")
    try:
        return msgspec.convert(_read_keys(value), Job, builtin_types=(bytes,), dec_hook=_read_link)
    except msgspec.ValidationError as error:
        raise UsageError(f"the terms do not fit: {error}") from None


def _read_keys(value: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the did:keys of a job's terms into keys."""
    fields = dict(value)
    for name in DID_FIELDS & set(fields):
        if not isinstance(fields[name], list) or not all(isinstance(did, str) for did in fields[name]):
            raise UsageError(f"{name} must be a list of did:keys")
        fields[name] = sorted(bytes(codec.parse_did(did)) for did in fields[name])
    return fields


def _read_link(target: type, value: object) -> Link:
    if target is not Link or not isinstance(value, str):
        raise NotImplementedError(target)
    try:
        return Link(codec.parse_cid(value))
    except UsageError as error:
        raise ValueError(str(error)) from None


INPUTS: Final[tuple[type[Struct], ...]] = (
    StakeInput, BidInput, RevealInput, VoteInput, TransferInput, ClaimInput, ProfileInput,
)  # fmt: skip
"""Every struct that a POST takes, jobs and ops aside."""
