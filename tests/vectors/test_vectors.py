"""The public edge cases and our own vectors of each bound, judged by this installation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crdtchain import codec
from crdtchain.adapters import keys
from crdtchain.adapters.vectors import judge_vectors
from crdtchain.errors import DecodeError, UsageError
from tests.vectors.make_bounds import numbers, sizes, structure

HERE = Path(__file__).parent
COUNTS = {"dagcbor": 242, "ed25519": 163, "bounds": 251}


def load(name: str) -> dict[str, list[dict[str, object]]]:
    document: dict[str, list[dict[str, object]]] = json.loads((HERE / f"{name}.json").read_text())
    return document


@pytest.mark.parametrize("name", COUNTS)
def test_every_case_is_judged_as_the_protocol_judges_it(name: str) -> None:
    judged = judge_vectors(load(name))
    assert len(judged) == COUNTS[name]
    assert [case for case in judged if not case.equal] == []


def test_public_documents_are_judged_the_same_without_links() -> None:
    judged = judge_vectors({**load("dagcbor"), "links": False})
    assert all(case.equal for case in judged)


def test_each_bound_is_refused_with_its_own_code() -> None:
    cases = load("bounds")["cases"]
    codes = {case.id: case.code for case in judge_vectors({"cases": cases})}
    assert codes == {case["id"]: case["code"] for case in cases}


def test_bounds_file_is_what_its_script_makes() -> None:
    made = [{"id": name, "hex": data.hex(), "code": code} for name, data, code in sizes() + numbers() + structure()]
    kept = [{field: case[field] for field in ("id", "hex", "code")} for case in load("bounds")["cases"]]
    assert kept == made


def test_accepted_documents_encode_to_themselves() -> None:
    for name in ("dagcbor", "bounds"):
        for case in load(name)["cases"]:
            if case["accept"]:
                data = bytes.fromhex(str(case["hex"]))
                assert codec.encode(codec.decode(data)) == data, case["id"]


def test_without_links_only_documents_with_links_change_their_verdict() -> None:
    for case in load("bounds")["cases"]:
        data = bytes.fromhex(str(case["hex"]))
        if case["accept"] and b"\xd8\x2a" not in data:
            codec.validate_profile(data, links=False)
        else:
            with pytest.raises(DecodeError):
                codec.validate_profile(data, links=False)


def test_a_wrong_verdict_is_reported_with_its_code() -> None:
    [judged] = judge_vectors({"cases": [{"id": "x", "hex": "1817", "accept": True}]})
    assert (judged.equal, judged.got, judged.code) == (False, False, "not_shortest")


def test_a_case_may_say_that_links_are_not_allowed() -> None:
    link = "d82a58250001711220" + "00" * 32
    cases = [{"id": "yes", "hex": link, "accept": True}, {"id": "no", "hex": link, "accept": False, "links": False}]
    assert all(case.equal for case in judge_vectors({"cases": cases}))


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {},
        {"cases": 5},
        {"cases": [5]},
        {"cases": [{"id": "x", "hex": "00"}]},
        {"cases": [{"id": "x", "accept": True}]},
        {"cases": [{"id": "x", "accept": True, "hex": "0"}]},
        {"cases": [{"id": "x", "accept": True, "hex": 0}]},
        {"cases": [{"id": "x", "accept": True, "hex": "00", "links": 1}]},
        {"cases": [{"id": "x", "accept": True, "key": "", "msg": ""}]},
    ],
)
def test_what_is_no_file_of_vectors_is_refused_in_a_sentence(document: object) -> None:
    with pytest.raises(UsageError):
        judge_vectors(document)


def test_the_package_carries_the_same_signatures() -> None:
    bundled = json.loads(Path(keys.__file__).with_name("ed25519_vectors.json").read_text())
    assert bundled["cases"] == load("ed25519")["cases"]
