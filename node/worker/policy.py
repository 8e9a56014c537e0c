"""Which jobs a worker takes: a pure decision from a policy, a job's terms and what the worker has.

The defaults are careful: a bounty of at least 4, a day left, an hour of run time at most, and no more than 4 jobs at
once. A job is taken when no reason speaks against it; all reasons are told, each in one sentence.

Not here: reading the ledger, running anything (`node.worker.loop`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, cast

from crdtchain.codec import parse_did
from crdtchain.limits import INT_MAX
from crdtchain.ops import Job
from crdtchain.scalars import Author
from node.tables import Table, format_duration, load_toml

RUNTIMES: Final = ("docker", "wasm")
_KEYS: Final = (
    "min_bounty", "min_time_left_s", "max_runtime_s", "max_jobs", "runtimes", "cpus", "memory_mib", "gpus", "tags",
    "posters", "max_stake", "verify",
)  # fmt: skip
_TEXTS_MAX: Final = 1_000


@dataclass(frozen=True, slots=True)
class Policy:
    """What a worker is willing to do."""

    min_bounty: int = 4
    """Credits."""
    min_time_left_s: int = 86_400
    """Until the end of bidding, seconds."""
    max_runtime_s: int = 3_600
    """A job's limit for one run, seconds."""
    max_jobs: int = 4
    """Jobs at one time."""
    runtimes: tuple[str, ...] = RUNTIMES
    """Only jobs that run in one of these sandboxes."""
    cpus: int = 1_024
    """At most so many cores for one run."""
    memory_mib: int = 2**24
    """At most so much memory for one run, MiB."""
    gpus: int = 0
    """At most so many GPUs for one run."""
    tags: tuple[str, ...] = ()
    """Only jobs with one of these; empty: any."""
    posters_allow: tuple[Author, ...] = ()
    """Only jobs of these; empty: anybody's."""
    posters_deny: tuple[Author, ...] = ()
    """No jobs of these."""
    max_stake: int = 100
    """Credits at risk in one job."""
    verify: Literal["yes", "no", "only"] = "yes"
    """Whether to judge others' models; `only`: never to train."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What a worker has at the moment.

    Attributes:
        balance: spendable credits.
        jobs: how many jobs it works on.
        runtimes: the sandboxes that can run here.
    """

    balance: int
    jobs: int
    runtimes: Collection[str]


def find_refusals(policy: Policy, terms: Job, poster: Author, budget: Budget, now_ms: int, me: Author) -> list[str]:
    """Return all that speaks against taking a job, each as a sentence; none: it is taken."""
    return [
        *_judge_policy(policy, terms, poster, me),
        *_judge_time(policy, terms, now_ms),
        *_judge_machine(policy, terms, budget),
        *_judge_budget(policy, terms, budget),
    ]


def _judge_policy(policy: Policy, terms: Job, poster: Author, me: Author) -> list[str]:
    found = []
    if policy.verify == "only":
        found.append("The policy is to verify only.")
    if poster == me:
        found.append("It is my own job.")
    if terms.bounty < policy.min_bounty:
        found.append(f"The bounty is {terms.bounty}; the policy wants {policy.min_bounty}.")
    if policy.tags and not set(policy.tags) & set(terms.tags):
        found.append("It has none of the policy's tags.")
    if poster in policy.posters_deny or (policy.posters_allow and poster not in policy.posters_allow):
        found.append("The policy does not allow its poster.")
    return found


def _judge_time(policy: Policy, terms: Job, now_ms: int) -> list[str]:
    left_ms = terms.bid_until - now_ms
    found = []
    if left_ms <= 0:
        found.append("Bidding is over.")
    elif left_ms < policy.min_time_left_s * 1_000:
        wanted = format_duration(policy.min_time_left_s * 1_000)
        found.append(f"Only {format_duration(left_ms // 1_000 * 1_000)} are left; the policy wants {wanted}.")
    if terms.task.resources.seconds > policy.max_runtime_s:
        found.append(f"A run may take {terms.task.resources.seconds} s; the policy allows {policy.max_runtime_s} s.")
    return found


def _judge_machine(policy: Policy, terms: Job, budget: Budget) -> list[str]:
    resources, runtime = terms.task.resources, terms.task.runtime
    found = []
    if runtime not in policy.runtimes:
        found.append(f"The policy does not allow the runtime {runtime}.")
    elif runtime not in budget.runtimes:
        found.append(f"The runtime {runtime} is not usable here.")
    for name, wanted, most in (
        ("cores", resources.cpus, policy.cpus),
        ("MiB of memory", resources.memory_mib, policy.memory_mib),
        ("GPUs", resources.gpus, policy.gpus),
    ):
        if wanted > most:
            found.append(f"It wants {wanted} {name}; the policy allows {most}.")
    return found


def _judge_budget(policy: Policy, terms: Job, budget: Budget) -> list[str]:
    found = []
    if terms.stake > policy.max_stake:
        found.append(f"The stake is {terms.stake}; the policy allows {policy.max_stake}.")
    if terms.stake > budget.balance:
        found.append(f"The stake is {terms.stake}; the balance is {budget.balance}.")
    if budget.jobs >= policy.max_jobs:
        found.append(f"{budget.jobs} jobs are being worked on; the policy allows {policy.max_jobs}.")
    return found


def load_policy(path: Path) -> Policy:
    """Read a policy file; what it does not name has its default.

    Raises:
        UsageError: it can't be read, or a key or value is wrong.
    """
    return parse_policy(load_toml(path, "policy"))


def parse_policy(values: Mapping[str, Any]) -> Policy:
    """Make a policy of the values of a TOML file.

    Raises:
        UsageError: a key or value is wrong.
    """
    table, default = Table(values, "", _KEYS), Policy()
    posters = table.table("posters", ("allow", "deny"), optional=True)
    return Policy(
        min_bounty=table.integer("min_bounty", 0, default=default.min_bounty, unit="credits"),
        min_time_left_s=table.integer("min_time_left_s", 0, default=default.min_time_left_s, unit="seconds"),
        max_runtime_s=table.integer("max_runtime_s", 1, default=default.max_runtime_s, unit="seconds"),
        max_jobs=table.integer("max_jobs", 1, 1_000, default=default.max_jobs, unit="jobs"),
        runtimes=_read_runtimes(table),
        cpus=table.integer("cpus", 1, 1_024, default=default.cpus, unit="cores"),
        memory_mib=table.integer("memory_mib", 16, 2**24, default=default.memory_mib, unit="MiB"),
        gpus=table.integer("gpus", 0, 64, default=default.gpus, unit="GPUs"),
        tags=table.texts("tags", _TEXTS_MAX, default=()),
        posters_allow=_read_posters(posters, "allow"),
        posters_deny=_read_posters(posters, "deny"),
        max_stake=table.integer("max_stake", 0, INT_MAX, default=default.max_stake, unit="credits"),
        verify=cast(Any, table.choice("verify", ("yes", "no", "only"), default.verify)),
    )


def _read_runtimes(table: Table) -> tuple[str, ...]:
    runtimes = table.texts("runtimes", len(RUNTIMES), least=1, default=RUNTIMES)
    if not set(runtimes) <= set(RUNTIMES):
        raise table.fault("runtimes", f"use {' and '.join(RUNTIMES)}")
    return runtimes


def _read_posters(posters: Table, key: str) -> tuple[Author, ...]:
    return tuple(parse_did(did) for did in posters.texts(key, _TEXTS_MAX, default=()))
