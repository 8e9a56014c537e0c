"""Counters: a closed set of names and labels, and a class for every end of a connection."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import node
from node.counters import CATALOGUE, DEFERRED, DROPS, HELD, PENALIZED, Counters, Drop, classify

ROOT = Path(node.__file__).parent.parent


def test_everything_is_shown_from_the_start_and_counts() -> None:
    counters = Counters()
    counters.add(HELD)
    counters.add(DEFERRED, "author", 3)
    counters.watch("crdtchain_held_ops", "Ops held.", lambda: 7)
    lines = counters.render().splitlines()
    assert "crdtchain_admission_held_total 1" in lines
    assert 'crdtchain_admission_deferred_total{limit="author"} 3' in lines
    assert 'crdtchain_admission_deferred_total{limit="chain"} 0' in lines
    assert lines[-3:] == [
        "# HELP crdtchain_held_ops Ops held.",
        "# TYPE crdtchain_held_ops gauge",
        "crdtchain_held_ops 7",
    ]
    assert len(lines) == 3 + sum(2 + len(counter.values) for counter in CATALOGUE)
    assert len({counter.name for counter in CATALOGUE}) == len(CATALOGUE)
    sample = re.compile(r"[a-z_]+(\{[a-z]+=\"[a-z_]+\"\})? \d+")
    assert all(sample.fullmatch(line) for line in lines if not line.startswith("#"))


def test_what_is_not_in_the_catalogue_is_a_mistake() -> None:
    with pytest.raises(KeyError, match="limit"):
        Counters().add(DEFERRED, "weather")
    with pytest.raises(KeyError):
        Counters().add(HELD, "author")


@given(
    st.text() | st.sampled_from(["the peer closed: ", "the peer sent a"]).flatmap(lambda a: st.text().map(a.__add__))
)
def test_any_reason_has_a_class_and_no_text_of_a_peer_becomes_a_label(reason: str) -> None:
    counters = Counters()
    before = len(counters.render().splitlines())
    drop = counters.note_drop(reason)
    assert counters.get(DROPS, drop) == 1 and len(counters.render().splitlines()) == before
    assert counters.note_drop(f"the peer closed: {reason}") not in PENALIZED


def find_reasons() -> list[tuple[str, str]]:
    """Return how the texts begin with which the program ends a connection for a peer's fault, with their codes."""
    found = []
    for folder in (ROOT / "crdtchain" / "sync", ROOT / "node"):
        for path in folder.glob("*.py"):
            for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(call, ast.Call) and ast.unparse(call.func).split(".")[-1] in ("PeerError", "drop"):
                    text, code = (*call.args[:2], None, None)[:2]
                    if isinstance(text, ast.JoinedStr):
                        text = text.values[0]
                    if isinstance(text, ast.Constant) and isinstance(text.value, str):
                        value = code.value if isinstance(code, ast.Constant) else ""
                        found.append((text.value, str(value)))
    return [reason for reason in found if reason[0].startswith("the peer ")]


def test_every_reason_that_the_program_gives_for_a_peers_fault_has_a_class() -> None:
    reasons = find_reasons()
    assert len(reasons) > 20
    assert [text for text, code in reasons if classify(text) is Drop.OTHER] == []
    assert [code for _, code in reasons if code and classify("", code) is Drop.OTHER] == []
    # A reason has the same class by its code and by its text, wherever only the text is known.
    assert [text for text, code in reasons if code and classify(text, code) is not classify(text)] == []
