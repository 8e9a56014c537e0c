"""Every scene that the oracle's own tests play is played by the core too, and each refused op is refused by both."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from crdtchain.errors import InvalidOpError
from crdtchain.ledger.state import Ledger
from tests.bridge import to_core
from tests.compare import assert_agree, assert_attests, build
from tests.oracle.model import OracleOp
from tests.oracle.rules import Oracle
from tests.unit import test_oracle_rules, test_oracle_settling, test_oracle_witnessing

MODULES = (test_oracle_rules, test_oracle_settling, test_oracle_witnessing)


def scenes() -> list[Any]:
    """Return all test functions of the oracle's tests that need no fixtures, with their parameters."""
    found = []
    for module in MODULES:
        for name, function in sorted(vars(module).items()):
            if not name.startswith("test_") or not callable(function):
                continue
            marks = [mark for mark in getattr(function, "pytestmark", []) if mark.name == "parametrize"]
            found.extend(_cases(name, function, marks))
    return found


def _cases(name: str, function: Any, marks: list[Any]) -> Iterator[Any]:
    if not marks:
        yield pytest.param(function, {}, id=name)
        return
    names, values = marks[0].args[0], marks[0].args[1]
    keys = [key.strip() for key in names.split(",")] if isinstance(names, str) else list(names)
    for place, value in enumerate(values):
        row = getattr(value, "values", None) if not isinstance(value, (tuple, list, dict)) else None
        cells = row if row is not None and not callable(row) else (value if len(keys) > 1 else (value,))
        yield pytest.param(function, dict(zip(keys, cells, strict=True)), id=f"{name}-{place}")


@pytest.mark.parametrize(("scene", "arguments"), scenes())
def test_the_core_plays_the_same_scene(scene: Any, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    played: list[Oracle] = []
    judged: list[tuple[Oracle, OracleOp, bool, int]] = []
    start, add, judge = Oracle.__init__, Oracle.add, Oracle.judge

    def note_start(self: Oracle, *args: Any, **kwargs: Any) -> None:
        start(self, *args, **kwargs)
        played.append(self)

    def note_add(self: Oracle, op: OracleOp) -> None:
        known = len(self.ops)
        try:
            add(self, op)
        except ValueError:
            judged.append((self, op, False, known))
            raise

    def note_judge(self: Oracle, op: OracleOp) -> str | None:
        code = judge(self, op)
        judged.append((self, op, code is None, len(self.ops)))
        return code

    monkeypatch.setattr(Oracle, "__init__", note_start)
    monkeypatch.setattr(Oracle, "add", note_add)
    monkeypatch.setattr(Oracle, "judge", note_judge)
    scene(**arguments)
    monkeypatch.undo()
    for oracle in played:
        _compare(oracle, [(op, valid, known) for where, op, valid, known in judged if where is oracle])


def _compare(oracle: Oracle, judged: list[tuple[OracleOp, bool, int]]) -> None:
    ids = list(oracle.ops)
    picks = random.Random(0).sample(ids, min(12, len(ids)))
    cuts = [None, *(frozenset({op}) for op in picks), frozenset(picks[:2])]
    ledger = build(oracle)
    assert_agree(oracle, ledger, cuts)
    assert_attests(oracle, ledger)
    for op, valid, known in judged:
        assert (_judge(_prefix(oracle, known), op) is None) == valid, (op.kind, _judge(_prefix(oracle, known), op))


def _prefix(oracle: Oracle, count: int) -> Ledger:
    ops = list(oracle.ops.values())
    ledger = Ledger(to_core(ops[0]))
    for op in ops[1:count]:
        ledger.add(to_core(op))
    return ledger


def _judge(ledger: Ledger, op: OracleOp) -> str | None:
    try:
        ledger.judge(to_core(op))
    except InvalidOpError as error:
        return error.code
    except LookupError:
        return "missing"
    return None
