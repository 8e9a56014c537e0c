"""What a demonstration is made of: who takes part, what each does, and how long each window is. Values alone.

Six nodes: alice posts, bob, carol and dave train, vera and victor verify. Alice, bob, vera and victor are the
witnesses: n = 4, so one of them may lie (f = 1) and three are a quorum. Carol and dave do what gives a scenario its
name.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from crdtchain.errors import UsageError

Role = Literal["poster", "worker", "verifier"]
Tactic = Literal["honest", "boast", "withhold"]
Cut = Literal["", "returns", "returns late"]

_PLACES: Final = (Path(__file__).parents[2] / "examples", Path(__file__).parents[1] / "examples")
"""Of the example jobs: in a checkout, and in an installed package."""
EXAMPLES: Final = next((place for place in _PLACES if place.is_dir()), _PLACES[0])
SCENARIOS: Final = ("honest", "cheat", "offline")

DELTA_MS: Final = 1_000
TICK_MS: Final = 1_000
EXPIRY_MS: Final = 3_600_000
ELECTOR_MIN: Final = 10
VERDICT_MIN: Final = 2
"""Both verifiers have to agree before anybody is a cheat."""
BID_S: Final = 32
REVEAL_S: Final = 8
VERDICT_S: Final = 22
RUN_S: Final = 8
"""The job's limit for one run; the window for verdicts is at least twice as long, and (f + 4) · Δ."""
EPOCHS: Final = 400
"""The job's epochs; a worker's runs grow up to them."""
BOUNTY: Final = 100
STAKE: Final = 5
POOL: Final = 10
ACCURACY_MIN: Final = 0.93


@dataclass(frozen=True, slots=True)
class Member:
    """One node of the demonstration.

    Attributes:
        name: what people see.
        grant: its first credits.
        tactic: what a worker says of its models.
        epochs: of a worker's first run; each next run has twice as many, up to `epochs_max`.
        rest_s: how long it rests between runs, seconds.
        cut: when a worker that was cut off comes back; empty: it is never cut off.
    """

    name: str
    role: Role
    is_witness: bool
    grant: int
    tactic: Tactic = "honest"
    epochs: int = 24
    epochs_max: int = EPOCHS
    rest_s: int = 0
    cut: Cut = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """One demonstration.

    Attributes:
        winner: who has to win; empty: whoever has the lowest loss; None: nobody.
        forfeits: who has to lose its stake.
    """

    scenario: str
    runtime: str
    seed: int
    on_cheat: str
    members: tuple[Member, ...]
    winner: str | None
    forfeits: tuple[str, ...]

    @property
    def workers(self) -> tuple[Member, ...]:
        """Those who train."""
        return tuple(member for member in self.members if member.role == "worker")

    @property
    def granted(self) -> int:
        """All credits there are."""
        return sum(member.grant for member in self.members)


def make_plan(scenario: str, runtime: str, seed: int, on_cheat: str) -> Plan:
    """Return the plan of a scenario.

    Raises:
        UsageError: there is no such scenario.
    """
    winner: str | None = ""
    forfeits: tuple[str, ...] = ()
    match scenario:
        case "honest":
            workers = (_worker("bob", epochs=24), _worker("carol", epochs=32), _worker("dave", epochs=40))
        case "cheat":
            workers = (_worker("bob", epochs=24), _worker("carol", "withhold"), _worker("dave", "boast"))
            winner, forfeits = ("bob" if on_cheat == "next" else None), ("carol", "dave")
        case "offline":
            # Who stays trains little, so that whoever comes back in time has the best model.
            workers = (
                _worker("bob", epochs=10, epochs_max=40, rest_s=4),
                _worker("carol", epochs=100, cut="returns"),
                _worker("dave", epochs=100, cut="returns late"),
            )
            winner = "carol"
        case _:
            raise UsageError(f"there is no scenario {scenario!r}: use {', '.join(SCENARIOS)}")
    members = (
        Member("alice", "poster", True, 1_000),
        *workers,
        Member("vera", "verifier", True, 20),
        Member("victor", "verifier", True, 20),
    )
    return Plan(scenario, runtime, seed, on_cheat, members, winner, forfeits)


def _worker(name: str, tactic: Tactic = "honest", **how: Any) -> Member:
    return Member(name, "worker", name == "bob", 50, tactic, **how)


def compute_balances(plan: Plan, winner: str | None, votes: Mapping[str, int]) -> dict[str, int]:
    """Return what everybody has to have at the end.

    Args:
        plan: the demonstration.
        winner: who won, or None.
        votes: of each voter, how many of its votes the outcome lists.
    """
    balances = {member.name: member.grant for member in plan.members}
    poster = plan.members[0].name
    balances[poster] -= BOUNTY + POOL
    balances[poster if winner is None else winner] += BOUNTY
    for name in plan.forfeits:
        balances[name] -= STAKE
    shared, count = POOL + STAKE * len(plan.forfeits), sum(votes.values())
    for name, number in votes.items():
        balances[name] += shared // count * number
    balances[poster] += shared - (shared // count * count if count else 0)
    return balances


def write_job_file(plan: Plan, folder: Path) -> Path:
    """Write the example's job file anew, with the short windows of a demonstration.

    Raises:
        UsageError: the example is not there.
    """
    source = EXAMPLES / ("digits-wasm" if plan.runtime == "wasm" else "digits")
    try:
        job = tomllib.loads((source / "job.toml").read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"the example job {source} can't be read: {error.strerror}") from None
    windows = {"bid_for": f"{BID_S}s", "reveal_for": f"{REVEAL_S}s", "verdict_for": f"{VERDICT_S}s"}
    amounts = {"bounty": BOUNTY, "stake": STAKE, "pool": POOL, "on_cheat": plan.on_cheat}
    task = job["task"]
    task["params"] = {**task["params"], "epochs": EPOCHS}
    task["resources"] = {**task["resources"], "seconds": RUN_S}
    files = {name: _make_absolute(source, value) for name, value in job["files"].items()}
    path = folder / "job.toml"
    path.write_text(format_toml({**job, **windows, **amounts, "files": files}), "utf-8")
    return path


def _make_absolute(source: Path, value: Any) -> Any:
    if isinstance(value, list):
        return [str((source / name).resolve()) for name in value]
    return str((source / value).resolve())


def format_toml(values: Mapping[str, Any], prefix: str = "") -> str:
    """Write texts, whole numbers, booleans, lists of texts and tables of them as TOML."""
    plain = [f"{name} = {_format_value(value)}" for name, value in values.items() if not isinstance(value, Mapping)]
    tables = [
        f"\n[{prefix}{name}]\n{format_toml(value, f'{prefix}{name}.')}"
        for name, value in values.items()
        if isinstance(value, Mapping)
    ]
    return "\n".join([*plain, *tables]) + "\n"


def _format_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, list):
        return f"[{', '.join(_format_value(item) for item in value)}]"
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'
