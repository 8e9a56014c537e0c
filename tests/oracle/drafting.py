"""Plain ops by hand: ids, keys, bodies with all their fields, and a scene that keeps the chains in order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from tests.oracle.model import OracleOp
from tests.oracle.rules import Oracle

MakeId = Callable[[bytes, int, bytes | None, tuple[bytes, ...], int, str, dict[str, Any]], bytes]
MakeKey = Callable[[str], bytes]

OP_LINK = bytes.fromhex("01711220")
BLOB_LINK = bytes.fromhex("01551220")


def default_id(
    author: bytes,
    seq: int,
    prev: bytes | None,
    parents: tuple[bytes, ...],
    time: int,
    kind: str,
    body: dict[str, Any],
) -> bytes:
    """36 bytes that look like an op's link, made of the op's plain fields."""
    return OP_LINK + hashlib.sha256(repr((author, seq, prev, parents, time, kind, body)).encode()).digest()


def default_key(name: str) -> bytes:
    """32 bytes for an author of this name. Not a key that anybody could sign with."""
    return hashlib.sha256(b"key of " + name.encode()).digest()


def blob(name: str) -> bytes:
    """A blob link made of a name."""
    return BLOB_LINK + hashlib.sha256(name.encode()).digest()


def commitment(author: bytes, model: bytes) -> bytes:
    """What a bid commits to."""
    return hashlib.sha256(b"crdtchain/bid:" + author + model).digest()


def genesis_body(witnesses: Sequence[bytes], grants: dict[bytes, int], **changes: Any) -> dict[str, Any]:
    """A genesis body: times of 1,000 ms, one vote decides, 100 credits make an elector."""
    body = {
        "name": "scene",
        "witnesses": list(witnesses),
        "grants": [[key, grants[key]] for key in sorted(grants)],
        "elector_min": 100,
        "verdict_min": 1,
        "bounty_min": 1,
        "delta_ms": 1000,
        "tick_ms": 1000,
        "expiry_ms": 20_000,
    }
    return body | changes


def job_body(bid_until: int, f: int, **changes: Any) -> dict[str, Any]:
    """Terms with the tightest deadlines that are allowed for Δ = 1,000 ms."""
    reveal_until = bid_until + (f + 4) * 1000
    body: dict[str, Any] = {
        "title": "a job",
        "tags": [],
        "metric": "mse",
        "tolerance": 0,
        "max_loss": None,
        "bounty": 100,
        "stake": 10,
        "pool": 7,
        "on_cheat": "refund",
        "bid_until": bid_until,
        "reveal_until": reveal_until,
        "verdict_until": reveal_until + (f + 4) * 1000 + 2000,
        "editors": [],
        "task": {
            "runtime": "wasm",
            "image": "main.wasm",
            "code": [["main.wasm", blob("code")]],
            "train": [],
            "predict": [],
            "params": {},
            "resources": {"cpus": 1, "memory_mib": 16, "disk_mib": 1, "seconds": 1, "gpus": 0},
        },
        "data": {
            "train": [["x.npy", blob("train")]],
            "features": [["x.npy", blob("features")]],
            "labels": blob("labels"),
        },
        "model": {"format": "raw", "arrays": [["w", "float32", [2]]]},
    }
    return body | changes


def record_body(**changes: Any) -> dict[str, Any]:
    """A record with no winner and empty lists."""
    return {"winner": None, "cheats": [], "forfeits": [], "votes": [], "expired": False} | changes


class Scene:
    """A network with n witnesses w0, w1, …, and ops that are added in the order they are made."""

    def __init__(
        self,
        n: int,
        grants: dict[str, int] | None = None,
        make_id: MakeId = default_id,
        make_key: MakeKey = default_key,
        **changes: Any,
    ) -> None:
        self.make_id = make_id
        self.key = make_key
        self.n = n
        self.f = (n - 1) // 3
        self.w = [make_key(f"w{i}") for i in range(n)]
        self.tips: dict[bytes, bytes] = {}
        granted = {make_key(name): amount for name, amount in (grants or {}).items()}
        body = genesis_body(self.w, granted, **changes)
        first = self.draft(make_key("founder"), "genesis", body, 0, (), None)
        self.genesis = first.id
        self.tips[first.author] = first.id
        self.oracle = Oracle(first)

    def draft(
        self,
        author: bytes,
        kind: str,
        body: dict[str, Any],
        time: int,
        parents: Sequence[bytes],
        prev: bytes | None,
    ) -> OracleOp:
        """An op that is not added. Parents are sorted; the author's own are left out."""
        ops = self.oracle.ops if prev is not None or parents else {}
        seq = 0 if prev is None else ops[prev].seq + 1
        links = tuple(sorted({one for one in parents if ops[one].author != author}))
        return OracleOp(
            self.make_id(author, seq, prev, links, time, kind, body), author, seq, prev, links, time, kind, body
        )

    def next(
        self, who: str, kind: str, body: dict[str, Any], time: int, *parents: bytes, after: bytes | str | None = "tip"
    ) -> OracleOp:
        """The next op of an author, not added; `after` another op of its chain forks it. Genesis when nothing else."""
        author = self.key(who)
        prev = self.tips.get(author) if isinstance(after, str) else after
        if prev is None and not parents:
            parents = (self.genesis,)
        return self.draft(author, kind, body, time, parents, prev)

    def add(
        self, who: str, kind: str, body: dict[str, Any], time: int, *parents: bytes, after: bytes | str | None = "tip"
    ) -> bytes:
        """Add the author's next op and return its id. Raises ValueError when it is invalid."""
        op = self.next(who, kind, body, time, *parents, after=after)
        self.oracle.add(op)
        self.tips[op.author] = op.id
        return op.id

    def judge(
        self, who: str, kind: str, body: dict[str, Any], time: int, *parents: bytes, after: bytes | str | None = "tip"
    ) -> str | None:
        """What the oracle says of the author's next op, which is not added."""
        return self.oracle.judge(self.next(who, kind, body, time, *parents, after=after))

    # -- the common ops --

    def beat(self, i: int, time: int, *parents: bytes, after: bytes | str | None = "tip") -> bytes:
        """A beat of witness i."""
        return self.add(f"w{i}", "beat", {}, time, *parents, after=after)

    def beats(self, time: int, *parents: bytes, only: Sequence[int] | None = None) -> list[bytes]:
        """A beat of each witness (or only some) with the same parents, not linking to each other."""
        return [self.beat(i, time, *parents) for i in (range(self.n) if only is None else only)]

    def job(self, who: str, time: int, bid_until: int, *parents: bytes, **changes: Any) -> bytes:
        """A job."""
        return self.add(who, "job", job_body(bid_until, self.f, **changes), time, *parents)

    def stake(self, who: str, job: bytes, time: int, *parents: bytes) -> bytes:
        """A stake on a job."""
        return self.add(who, "stake", {"job": job}, time, *parents)

    def bid(
        self, who: str, job: bytes, loss: int, time: int, *parents: bytes, after: bytes | str | None = "tip"
    ) -> bytes:
        """A bid that commits to the model `<who>-<loss>`."""
        commit = commitment(self.key(who), blob(f"{who}-{loss}"))
        return self.add(who, "bid", {"job": job, "loss": loss, "commit": commit}, time, *parents, after=after)

    def reveal(self, who: str, bid: bytes, time: int, *parents: bytes, after: bytes | str | None = "tip") -> bytes:
        """The reveal of a bid made with `bid`."""
        model = blob(f"{who}-{self.oracle.ops[bid].body['loss']}")
        return self.add(who, "reveal", {"bid": bid, "model": model, "size": 8}, time, *parents, after=after)

    def vote(
        self, who: str, reveal: bytes, verdict: str, time: int, *parents: bytes, after: bytes | str | None = "tip"
    ) -> bytes:
        """A vote on a reveal."""
        body = {"reveal": reveal, "verdict": verdict, "loss": None}
        return self.add(who, "vote", body, time, *(parents or (reveal,)), after=after)

    def attest(self, i: int, job: bytes, record: dict[str, Any], time: int, *parents: bytes) -> bytes:
        """An attest of witness i."""
        return self.add(f"w{i}", "attest", {"job": job, "record": record}, time, *parents)

    def transfer(
        self, who: str, to: str, amount: int, time: int, *parents: bytes, after: bytes | str | None = "tip"
    ) -> bytes:
        """A transfer."""
        body = {"to": self.key(to), "amount": amount, "memo": None}
        return self.add(who, "transfer", body, time, *parents, after=after)

    def claim(self, who: str, of: bytes, time: int, *parents: bytes) -> bytes:
        """A claim."""
        return self.add(who, "claim", {"of": of}, time, *parents)
