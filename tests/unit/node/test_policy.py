"""Which jobs a worker takes: each reason at its bound, and files of policies."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from crdtchain.codec import Link, compute_blob_id, format_did
from crdtchain.errors import UsageError
from crdtchain.ops import Data, Job, ModelSpec, Resources, Task
from crdtchain.scalars import Author
from node.worker.policy import Budget, Policy, find_refusals, load_policy, parse_policy

ALICE, BOB = Author(bytes([1]) * 32), Author(bytes([2]) * 32)
NOW = 1_800_000_000_000
DAY_MS = 86_400_000
BLOB = Link(compute_blob_id(b""))
RICH = Budget(balance=1_000, jobs=0, runtimes=("docker", "wasm"))


def make_terms(**changes: Any) -> Job:
    resources = Resources(
        cpus=1, memory_mib=64, disk_mib=8, seconds=changes.pop("seconds", 3_600), gpus=changes.pop("gpus", 0)
    )
    task = Task(runtime="wasm", image="m", code=(("m", BLOB),), train=(), predict=(), params={}, resources=resources)
    terms = Job(
        title="t", tags=("small",), metric="mse", tolerance=0, max_loss=None, bounty=4, stake=5, pool=0,
        on_cheat="refund", bid_until=NOW + DAY_MS, reveal_until=NOW + 2 * DAY_MS, verdict_until=NOW + 3 * DAY_MS,
        editors=(), task=task, data=Data(train=(("x", BLOB),), features=(("x", BLOB),), labels=BLOB),
        model=ModelSpec(format="raw", arrays=(("w", "float64", ()),)),
    )  # fmt: skip
    return replace(terms, **changes)


def refuse(policy: Policy | None = None, budget: Budget = RICH, now: int = NOW, **changes: Any) -> list[str]:
    return find_refusals(policy or Policy(), make_terms(**changes), ALICE, budget, now, BOB)


def test_a_job_at_every_bound_of_the_defaults_is_taken() -> None:
    assert refuse() == []
    assert refuse(budget=Budget(5, 3, ("wasm",)), stake=5) == []


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (refuse(bounty=3), "The bounty is 3; the policy wants 4."),
        (refuse(now=NOW + 1_000), "Only 23h59m59s are left; the policy wants 1d."),
        (refuse(now=NOW + DAY_MS), "Bidding is over."),
        (refuse(seconds=3_601), "A run may take 3601 s; the policy allows 3600 s."),
        (refuse(budget=Budget(1_000, 4, ("wasm",))), "4 jobs are being worked on; the policy allows 4."),
        (refuse(budget=Budget(4, 0, ("wasm",))), "The stake is 5; the balance is 4."),
        (refuse(stake=101), "The stake is 101; the policy allows 100."),
        (refuse(gpus=1), "It wants 1 GPUs; the policy allows 0."),
        (refuse(Policy(memory_mib=32)), "It wants 64 MiB of memory; the policy allows 32."),
        (refuse(budget=Budget(1_000, 0, ("docker",))), "The runtime wasm is not usable here."),
        (refuse(Policy(runtimes=("docker",))), "The policy does not allow the runtime wasm."),
        (refuse(Policy(tags=("vision",))), "It has none of the policy's tags."),
        (refuse(Policy(posters_deny=(ALICE,))), "The policy does not allow its poster."),
        (refuse(Policy(posters_allow=(BOB,))), "The policy does not allow its poster."),
        (refuse(Policy(verify="only")), "The policy is to verify only."),
        (find_refusals(Policy(), make_terms(), BOB, RICH, NOW, BOB), "It is my own job."),
    ],
)
def test_each_reason_is_told(found: list[str], reason: str) -> None:
    assert found == [reason]


@given(
    st.integers(0, 10), st.integers(0, 2 * DAY_MS), st.integers(1, 5_000), st.integers(0, 10), st.integers(0, 6),
    st.integers(0, 200),
)  # fmt: skip
def test_a_job_is_taken_exactly_when_it_is_within_every_bound(
    bounty: int, left_ms: int, seconds: int, balance: int, jobs: int, stake: int
) -> None:
    found = refuse(
        budget=Budget(balance, jobs, ("wasm",)), bounty=bounty, bid_until=NOW + left_ms, seconds=seconds, stake=stake
    )
    fits = bounty >= 4 and left_ms >= DAY_MS and seconds <= 3_600 and stake <= min(balance, 100) and jobs < 4
    assert (found == []) == fits
    assert all(reason.endswith(".") and "\n" not in reason for reason in found)


@given(st.integers(0, 2**40), st.integers(1, 100))
def test_a_laxer_policy_never_refuses_more(bounty: int, more: int) -> None:
    strict, lax = Policy(min_bounty=bounty + more), Policy(min_bounty=bounty)
    assert len(refuse(lax, bounty=7)) <= len(refuse(strict, bounty=7))


def test_a_policy_file_changes_what_it_names(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(
        'min_bounty = 0\nmin_time_left_s = 5\nruntimes = ["wasm"]\nverify = "no"\n'
        f'[posters]\ndeny = ["{format_did(ALICE)}"]\n'
    )
    policy = load_policy(path)
    assert policy == Policy(min_bounty=0, min_time_left_s=5, runtimes=("wasm",), verify="no", posters_deny=(ALICE,))
    assert parse_policy({}) == Policy()


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"min_bonty": 3}, "unknown key min_bonty: did you mean min_bounty?"),
        ({"min_bounty": -1}, "min_bounty is -1: the least is 0 credits"),
        ({"verify": True}, "verify is true: use one of yes, no, only"),
        ({"runtimes": ["bash"]}, "runtimes is ['bash']: use docker and wasm"),
        ({"runtimes": []}, "runtimes is []: 1 to 2 entries are allowed"),
        ({"posters": {"permit": []}}, "unknown key posters.permit: known are allow, deny"),
        ({"posters": {"allow": ["bob"]}}, "not an Ed25519 did:key: 'bob'"),
        ({"max_jobs": "4"}, "max_jobs is '4': write a whole number of jobs"),
    ],
)
def test_each_mistake_in_a_policy_is_answered_with_one_sentence(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=re.escape(sentence)):
        parse_policy(values)
