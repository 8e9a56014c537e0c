"""What is known of a running demonstration: fed by the processes' lines and by the poster's node, read by the screen.

Everything that happens is also told once, as a line of one sentence, to whoever listens (`on_note`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from node.demo.plan import Member, Plan
from node.tables import format_micros

NOTES_MAX: Final = 200
Json = Mapping[str, Any]

_PHASES: Final = {
    "posted": "waiting for the witnesses",
    "bidding": "bidding",
    "revealing": "revealing",
    "judging": "judging",
    "deciding": "deciding",
    "decided": "decided",
    "refunded": "refunded",
    "no winner": "no winner",
    "expired": "expired",
    "conflict": "two outcomes",
}
END_PHASES: Final = frozenset({"decided", "refunded", "no winner", "expired", "conflict"})


@dataclass(frozen=True, slots=True)
class Note:
    """One line of the log: seconds since the start, who, what; `is_loud`: worth a colour."""

    at_s: float
    who: str
    text: str
    is_loud: bool = False


@dataclass(slots=True)
class Seat:
    """What is known of one member.

    Attributes:
        doing: what it does now, a few words.
        runs: training runs begun.
        epochs: of the run under way.
        best: the lowest loss that it has announced, micros.
        stake: status of its stake.
    """

    member: Member
    did: str = ""
    doing: str = "starting"
    runs: int = 0
    epoch: int = 0
    epochs: int = 0
    is_training: bool = False
    loss: float | None = None
    best: int | None = None
    bids: int = 0
    stake: str = ""
    is_cut: bool = False
    balance: int | None = None


@dataclass(slots=True)
class Board:
    """The state of a demonstration."""

    plan: Plan
    on_note: Callable[[Note], None] = lambda note: None
    started_s: float = field(default_factory=time.monotonic)
    network: str = ""
    stage: str = "getting ready"
    job: Json | None = None
    attests: Sequence[Json] = ()
    claims: Sequence[Json] = ()
    seats: dict[str, Seat] = field(default_factory=dict)
    notes: deque[Note] = field(default_factory=lambda: deque(maxlen=NOTES_MAX))
    broken: str = ""
    leads: list[tuple[str, int]] = field(default_factory=list)
    """Who has led, with which loss, in order."""
    _seen: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.seats = {member.name: Seat(member) for member in self.plan.members}

    @property
    def now_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started_s

    @property
    def phase(self) -> str:
        """Where the job is, as views name it; empty before it is posted."""
        return "" if self.job is None else str(self.job["phase"])

    def describe_phase(self) -> str:
        """Return a word for people."""
        return _PHASES.get(self.phase, self.stage)

    def name_of(self, did: str) -> str:
        """Return who a did:key is."""
        return next((name for name, seat in self.seats.items() if seat.did == did), did[-8:])

    def note(self, who: str, text: str, is_loud: bool = False) -> None:
        """Add a line to the log."""
        note = Note(self.now_s, who, text, is_loud)
        self.notes.append(note)
        self.on_note(note)

    # -- from the processes --

    def hear(self, name: str, row: Json) -> None:
        """Take one line that a member's process told."""
        seat = self.seats[name]
        match row["kind"]:
            case "ready":
                seat.doing = "ready"
            case "broken":
                seat.doing = "broken"
                self.broken = self.broken or f"{name}: {row['text']}"
                self.note(name, str(row["text"]), is_loud=True)
            case "worker":
                self._hear_worker(seat, str(row["event"]), str(row["text"]), row["data"])

    def _hear_worker(self, seat: Seat, event: str, text: str, data: Json) -> None:
        name = seat.member.name
        if event == "progress":
            seat.epoch, seat.loss = int(data["epoch"]), float(data["loss"])
            return
        seat.is_training = event == "training"
        seat.doing = _DOING.get(event, seat.doing)
        match event:
            case "training":
                seat.epochs = min(seat.member.epochs * 2**seat.runs, seat.member.epochs_max)
                seat.runs, seat.epoch, seat.loss = seat.runs + 1, 0, None
                self.note(name, f"trains a model: run {seat.runs}, seed {data['seed']}, {seat.epochs} epochs.")
            case "measured":
                accuracy = data.get("accuracy")
                shown = "" if accuracy is None else f", {float(accuracy):.1%} of the test digits right"
                loss = format_micros(int(data["loss"]))
                if seat.best is None or int(data["loss"]) < seat.best:
                    self.note(name, f"has a model with loss {loss}{shown}.")
                elif seat.member.tactic == "honest":
                    self.note(name, f"has a model with loss {loss}, no better than its bid.")
            case "bid":
                seat.best, seat.bids = int(data["loss"]), seat.bids + 1
                self.note(name, f"bids {format_micros(seat.best)}{_BID_NOTES[seat.member.tactic]}.", is_loud=True)
            case "vote":
                self.note(name, text.replace("Voted", "votes", 1), is_loud=data["verdict"] != "valid")
            case "taken":
                self.note(name, "takes the job.")
            case "staked":
                self.note(name, f"stakes {data['stake']} credits.")
            case "revealed" | "decided":
                # The poster's node shows it too, when the witnesses have it.
                pass
            case "withheld":
                self.note(name, "does not reveal the model behind its bid.", is_loud=True)
            case "refused" if "already" in text or "once" in text:
                pass
            case _:
                self.note(name, text, is_loud=event in ("failed", "run_failed", "withheld", "too_late"))

    # -- from the poster's node --

    def see(self, job: Json, ops: Mapping[str, Sequence[Json]], accounts: Sequence[Json]) -> None:
        """Take what the poster's node knows: the job, ops by kind, accounts."""
        self.job, self.attests, self.claims = job, ops["attest"], ops["claim"]
        for account in accounts:
            self.seats[self.name_of(account["did"])].balance = int(account["balance"])
        if job["certified"] and self._is_new("job", "certified"):
            self.note("witnesses", "the job is certified: its bounty can't be spent twice.")
        self._note_phase(job)
        for stake in ops["stake"]:
            name = self.name_of(stake["author"])
            self.seats[name].stake = stake["status"]
            if stake["status"] == "certified" and self._is_new(f"stake {name}", "certified"):
                self.note("witnesses", f"the stake of {name} is certified.")
        for bid in job["leaderboard"]:
            self._see_bid(bid)
        leader = job["leading"]
        if leader is not None and self._is_new("leader", leader["bid"]):
            self.leads.append((self.name_of(leader["author"]), int(leader["loss"])))
            if job["phase"] not in END_PHASES:
                text = f"leads with {format_micros(leader['loss'])}."
                self.note(self.name_of(leader["author"]), text, is_loud=True)
        self._note_claims()

    def _see_bid(self, bid: Json) -> None:
        name, loss = self.name_of(bid["author"]), format_micros(bid["loss"])
        if bid["status"] in ("late", "void", "unrevealed", "open") and self._is_new(f"bid {bid['id']}", bid["status"]):
            reason = f": {bid['reason']}" if bid["reason"] else ""
            self.note(name, f"the bid of {loss} is {bid['status']}{reason}.", is_loud=True)
        for reveal in bid["reveals"]:
            if self._is_new(f"reveal {reveal['id']}", "there"):
                self.note(name, f"the model behind {loss} is out, {reveal['size']:,} bytes.")

    def _note_phase(self, job: Json) -> None:
        phase = job["phase"]
        if not self._is_new("phase", phase):
            return
        match phase:
            case "revealing":
                self.note("witnesses", "bidding is over; what is bid from now on is late.")
            case "judging":
                self.note("witnesses", "revealing is over; the verifiers' votes count until the next deadline.")
            case "deciding":
                self.note("witnesses", "voting is over; each witness says what it saw.")
            case "decided":
                outcome = job["outcome"]
                winner, loss = self.name_of(outcome["winner_author"]), format_micros(outcome["loss"])
                self.note("witnesses", f"the outcome is certified: {winner} wins with {loss}.", is_loud=True)
            case "refunded":
                cheats = ", ".join(self.name_of(did) for did in job["outcome"]["cheats"])
                text = f"the outcome is certified: {cheats} cheated and is banned; the bounty goes back."
                self.note("witnesses", text, is_loud=True)
            case "no winner" | "expired" | "conflict":
                self.note("witnesses", f"the job ended without a winner ({phase}).", is_loud=True)
        if job["outcome"] is not None and job["outcome"]["forfeits"]:
            names = ", ".join(self.name_of(did) for did in job["outcome"]["forfeits"])
            self.note("witnesses", f"forfeited their stakes: {names}.", is_loud=True)

    def _note_claims(self) -> None:
        for claim in self.claims:
            name = self.name_of(claim["author"])
            if claim["status"] == "certified" and self._is_new(f"claim {name}", "certified"):
                self.note(name, "has claimed what is due to it, and the claim is certified.")

    def _is_new(self, key: str, value: str) -> bool:
        if not value or self._seen.get(key) == value:
            return False
        self._seen[key] = value
        return True


_DOING: Final = {
    "taken": "takes the job",
    "staked": "staked",
    "training": "trains",
    "measured": "measured",
    "bid": "has bid",
    "training_over": "waits for the deadline",
    "revealed": "revealed",
    "withheld": "keeps its model",
    "decided": "done",
    "run_failed": "its run failed",
    "failed": "failed",
    "too_late": "too late",
    "vote": "voted",
    "abstained": "abstained",
}
_BID_NOTES: Final = {
    "honest": "",
    "boast": ", which its model does not have",
    "withhold": ", and will never show a model",
}
