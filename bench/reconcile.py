"""What it costs two replicas to find how they differ: bytes, round trips and CPU of a walk, beside Automerge's sync.

    python -m bench.reconcile 100000 --authors 100 [--automerge]

The sets are synthetic, without content or signatures: an op is an id, its links, and the depth that follows. Authors
write at once: each sees what is eight ops old, links to its heads, and now and then writes for a while with its own
chain alone in sight. Both sides keep what the other lacks in one of these shapes:

    equal        nothing
    recent       the newest ops are on one side only
    … half       the newest ops are half on one side and half on the other
    scattered    ops that nobody has linked to, from anywhere in the history, are on one side only
    fresh        one side has the first op only

Counted are the frames that negotiate, of both sides, with a probe of each at the start; not hello and proof, nor what
only moves ops (five bytes a page).
Automerge gets the same history as changes without content, encoded here by its published binary format, and starts
without memory of an earlier sync, as after a restart; of its messages the changes are not counted. Only up to 20,000
ops: loading a document takes time with the square of its changes (1.0.0rc1: 9 s for 20,000 by 100 authors).
"""

from __future__ import annotations

import argparse
import random
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from bench.figures import Figure, benchmark
from crdtchain import limits
from crdtchain.codec import compute_op_id
from crdtchain.scalars import OpId
from crdtchain.sync.messages import Get, Head, Probe, Tree, TreeReply, encode_frame
from crdtchain.sync.pull import Pull
from crdtchain.sync.reconcile import Selection, answer
from crdtchain.sync.regions import decode_items
from crdtchain.sync.tree import RangeTree

UNDER_WAY: Final = 8
"""An op is seen by all other authors after so many further ones."""
AWAY_OF: Final = 500
"""One in so many ops begins a time without news of others."""
AWAY_OPS: Final = 10
APART_MAX: Final = 10_000
PULLS_MAX: Final = 100
REPEATS: Final = 5


@dataclass
class History:
    """A set of ops: columns by number, in the order in which they were written.

    Attributes:
        ids: the ids, genesis first.
        depths: for each op one more than the largest of its links'.
        links: for each op the numbers of prev, if any, and parents; empty when they were not asked for.
        authors: for each op its author's number.
        loose: ops that nobody has linked to, from anywhere.
    """

    ids: list[OpId] = field(default_factory=list)
    depths: array[int] = field(default_factory=lambda: array("q"))
    links: list[tuple[int, ...]] = field(default_factory=list)
    authors: array[int] = field(default_factory=lambda: array("q"))
    loose: list[int] = field(default_factory=list)


class _Group:
    """Authors who see each other's ops."""

    def __init__(self, heads: Iterable[int] = (), under_way: Iterable[tuple[int, tuple[int, ...]]] = ()) -> None:
        self.heads = dict.fromkeys(heads)
        self.under_way = deque(under_way)

    def split(self) -> _Group:
        """Return another group that has seen the same."""
        return _Group(self.heads, self.under_way)

    def publish(self, number: int, links: tuple[int, ...]) -> None:
        """Take an op, which is seen after some others."""
        self.under_way.append((number, links))
        if len(self.under_way) > UNDER_WAY or not number:
            seen, covered = self.under_way.popleft()
            for link in covered:
                self.heads.pop(link, None)
            self.heads[seen] = None


def make_history(count: int, authors: int, seed: int, loose: int = 0, with_links: bool = False) -> History:
    """Make a history.

    `loose` ops in it are each by an author who wrote no other, and nobody links to them. During the last quarter, or
    the last `APART_MAX` ops, authors with odd and with even numbers hear nothing of each other.
    """
    rng = random.Random(seed)
    apart_from = count - min(APART_MAX, count // 4)
    made = History(loose=sorted(rng.sample(range(1, apart_from - 1), loose)))
    loose_numbers = {number: authors + place for place, number in enumerate(made.loose)}
    chains, away = [-1] * authors, [0] * authors
    groups = [_Group()] * 2
    for number in range(count):
        if number == apart_from:
            groups = [groups[0], groups[0].split()]
        author = loose_numbers.get(number, -1)
        if author >= 0:
            links = tuple(groups[0].heads)[: limits.PARENTS_MAX]
        else:
            author = rng.randrange(authors) if number else 0
            group = groups[author % 2]
            links = tuple(group.heads)[: limits.PARENTS_MAX]
            if (before := chains[author]) >= 0:
                if not away[author] and not rng.randrange(AWAY_OF):
                    away[author] = AWAY_OPS
                if away[author]:
                    away[author] -= 1
                    links = ()
                links = (before, *(link for link in links if link != before))
            chains[author] = number
            group.publish(number, links)
        made.ids.append(compute_op_id(b"%d %d" % (seed, number)))
        made.depths.append(1 + max((made.depths[link] for link in links), default=-1))
        made.authors.append(author)
        if with_links:
            made.links.append(links)
    return made


@dataclass(frozen=True)
class Shape:
    """What each side lacks, as op numbers; loose ops are on no side unless they are named."""

    name: str
    asker_lacks: frozenset[int] = frozenset()
    answerer_lacks: frozenset[int] = frozenset()
    loose: frozenset[int] = frozenset()
    """Ops that the answerer has beside the others."""


def make_shapes(made: History) -> list[Shape]:
    """Return the shapes that a history is large enough for."""
    count, rng, loose = len(made.ids), random.Random(1), frozenset(made.loose)
    found = [Shape("equal")]
    for size in (100, APART_MAX):
        if size * 4 <= count:
            newest = frozenset(range(count - size, count))
            half = frozenset(number for number in newest if made.authors[number] % 2)
            found.append(Shape(f"{size:,} recent", newest))
            found.append(Shape(f"{size:,} recent, half on each side", half, newest - half))
        if len(loose) >= size:
            found.append(Shape(f"{size:,} scattered", loose=frozenset(rng.sample(made.loose, size))))
    found.append(Shape("fresh", frozenset(range(1, count)) - loose))
    return found


@dataclass
class Cost:
    """What one reconciliation took.

    Attributes:
        asked_bytes, answered_bytes: of the frames of the side that lacks more, and of the other.
        exchanges: questions and requests that were answered.
        asker_s, answerer_s: CPU time of each side, s; ours without additions to the trees, Automerge's with them.
        adding_s: CPU time of the additions, each page's with one root.
        ops: that came.
    """

    asked_bytes: int = 0
    answered_bytes: int = 0
    exchanges: int = 0
    asker_s: float = 0.0
    answerer_s: float = 0.0
    adding_s: float = 0.0
    ops: int = 0

    @property
    def total_bytes(self) -> int:
        """Of both sides."""
        return self.asked_bytes + self.answered_bytes


class _Side:
    """One replica: a tree, and what it cost."""

    def __init__(self, tree: RangeTree, seed: bytes) -> None:
        self.tree = tree
        self.pull = Pull(seed)
        self.bytes = 0
        self.cpu_s = 0.0
        self.adding_s = 0.0
        self.ops = 0
        self.exchanges = 0

    @contextmanager
    def working(self) -> Iterator[None]:
        started = time.thread_time()
        yield
        self.cpu_s += time.thread_time() - started

    def send(self, head: Head) -> None:
        self.bytes += len(encode_frame(head))

    def add(self, page: Iterable[int]) -> None:
        started = time.thread_time()
        for number in page:
            self.tree.add(number)
            self.ops += 1
        self.tree.root()
        self.adding_s += time.thread_time() - started


def pull_once(asker: _Side, answerer: _Side) -> None:
    """Let one side get what it lacks, as far as one pull finds it."""
    with asker.working():
        head = asker.pull.start(asker.tree, b"")
    while head is not None:
        asker.exchanges += 1
        asker.send(head)
        if isinstance(head, Tree):
            with answerer.working():
                found = answer(answerer.tree, head.salt, decode_items(head.items))
                reply = TreeReply(found.answered, found.items)
                answerer.send(reply)
                if found.lacking:
                    answerer.pull.note_found(head.salt, found.lacking)
            with asker.working():
                head = asker.pull.take_reply(reply.answered, reply.items)
        else:
            assert isinstance(head, Get)
            with answerer.working():
                selection = Selection(answerer.tree, head.salt, decode_items(head.items))
            while not selection.is_done:
                with answerer.working():
                    page = selection.take(limits.BATCH_OPS_MAX)
                asker.add(page)
            with asker.working():
                asker.pull.trip.ops = asker.ops
                head = asker.pull.end_request()


def reconcile(made: History, shape: Shape, full: RangeTree, seed: int) -> Cost:
    """Let two replicas find and get what they lack, until their roots are equal.

    `full` is a tree over all but loose ops, which is used for a side that has just these and gets none.
    """
    common, loose = range(len(made.ids)), frozenset(made.loose)

    def make_tree(lacks: frozenset[int], more: frozenset[int] = frozenset()) -> RangeTree:
        tree = RangeTree(made.ids, made.depths, (n for n in common if n in more or (n not in lacks and n not in loose)))
        tree.root()
        return tree

    def make_side(number: int, tree: RangeTree) -> _Side:
        side = _Side(tree, sha256(b"%d %d" % (seed, number)).digest())
        # What hellos say of roots.
        side.send(Probe(tree.root(), len(tree)))
        return side

    asker = make_side(0, make_tree(shape.asker_lacks) if shape.asker_lacks or shape.loose else full)
    is_full = not (shape.answerer_lacks or shape.loose)
    answerer = make_side(1, full if is_full else make_tree(shape.answerer_lacks, shape.loose))
    for _ in range(PULLS_MAX):
        if asker.tree.root() == answerer.tree.root():
            break
        pull_once(asker, answerer)
        if answerer.pull.has_found:
            pull_once(answerer, asker)
    else:
        raise RuntimeError(f"{shape.name}: the sets are still not equal after {PULLS_MAX} pulls")
    return Cost(
        asker.bytes,
        answerer.bytes,
        asker.exchanges + answerer.exchanges,
        asker.cpu_s,
        answerer.cpu_s,
        asker.adding_s + answerer.adding_s,
        asker.ops + answerer.ops,
    )


# -- Automerge --

_MAGIC: Final = b"\x85\x6f\x4a\x83"
_CHANGE: Final = b"\x01"


def encode_leb(value: int) -> bytes:
    """Encode a number as unsigned LEB128."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def make_changes(made: History) -> list[bytes]:
    """Return a history as Automerge's changes, each without content, with the same authors and links."""
    hashes, changes, lengths = list[bytes](), list[bytes](), dict[int, int]()
    for author, links in zip(made.authors, made.links, strict=True):
        lengths[author] = lengths.get(author, 0) + 1
        actor = author.to_bytes(16, "big")
        body = b"".join((
            encode_leb(len(links)), *sorted(hashes[link] for link in links), encode_leb(len(actor)), actor,
            encode_leb(lengths[author]),
            # First op, time, no message, no other actors, no columns.
            b"\x01\x00\x00\x00\x00",
        ))  # fmt: skip
        chunk = _CHANGE + encode_leb(len(body)) + body
        hashes.append(sha256(chunk).digest())
        changes.append(_MAGIC + hashes[-1][:4] + chunk)
    return changes


class _MessageReader:
    """Reads a sync message, as far as is needed to find what is in it."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 1

    def number(self) -> int:
        value = shift = 0
        while True:
            byte = self._data[self._place]
            self._place += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    def skip(self, size: int) -> int:
        self._place += size
        return size

    def skip_hashes(self) -> None:
        self.skip(32 * self.number())


def count_changes_bytes(message: bytes) -> int:
    """Return how many bytes of a sync message are changes."""
    reader = _MessageReader(message)
    # Heads; hashes that are needed.
    reader.skip_hashes()
    reader.skip_hashes()
    for _ in range(reader.number()):
        reader.skip_hashes()
        # What the sender has since then, as a Bloom filter.
        reader.skip(reader.number())
    return sum(reader.skip(reader.number()) for _ in range(reader.number()))


def sync_automerge(made: History, shape: Shape, changes: list[bytes]) -> Cost:
    """Let two documents of Automerge sync until they are equal."""
    from automerge import core

    loose = frozenset(made.loose)

    def load(lacks: frozenset[int], more: frozenset[int] = frozenset()) -> Any:
        without = lacks | (loose - more)
        return core.Document.load(b"".join(data for number, data in enumerate(changes) if number not in without))

    documents = [load(shape.asker_lacks), load(shape.answerer_lacks, shape.loose)]
    states = [core.SyncState(), core.SyncState()]
    times, sizes, count, silent = [0.0, 0.0], [0, 0], 0, 0
    for turn in range(PULLS_MAX):
        side = turn % 2
        started = time.thread_time()
        message = documents[side].generate_sync_message(states[side])
        data = b"" if message is None else message.encode()
        times[side] += time.thread_time() - started
        silent = 0 if data else silent + 1
        if silent == 2:
            break
        if not data:
            continue
        sizes[side] += len(data) - count_changes_bytes(data)
        count += 1
        started = time.thread_time()
        documents[1 - side].receive_sync_message(states[1 - side], core.Message.decode(data))
        times[1 - side] += time.thread_time() - started
    if documents[0].get_heads() != documents[1].get_heads():
        raise RuntimeError(f"{shape.name}: the documents are not equal")
    return Cost(sizes[0], sizes[1], (count + 1) // 2, times[0], times[1])


# -- figures --


def best_cost(runs: int, function: Callable[[int], Cost]) -> Cost:
    """Return the bytes and exchanges of the first of some runs, and the least times of all."""
    costs = [function(run) for run in range(runs)]
    costs[0].asker_s = min(cost.asker_s for cost in costs)
    costs[0].answerer_s = min(cost.answerer_s for cost in costs)
    return costs[0]


def measure(count: int, authors: int, with_automerge: bool, only: str = "") -> Iterator[tuple[str, Cost, Cost | None]]:
    """Yield for each shape, or the one of a name, the name, what it took, and what it took Automerge."""
    made = make_history(count, authors, count, 10_000 if count >= 10**5 else 100, with_automerge)
    loose = frozenset(made.loose)
    full = RangeTree(made.ids, made.depths, (number for number in range(count) if number not in loose))
    changes = make_changes(made) if with_automerge else []
    for shape in make_shapes(made):
        if only not in ("", shape.name):
            continue
        # Making a tree costs more than reconciling it.
        runs = REPEATS if count <= 10**5 and shape.name != "fresh" else 1

        def run(seed: int, shape: Shape = shape) -> Cost:
            return reconcile(made, shape, full, seed)

        yield shape.name, best_cost(runs, run), sync_automerge(made, shape, changes) if with_automerge else None


@benchmark
def reconciling(_history: Path) -> list[Figure]:
    """What two replicas say to find how they differ, op bodies aside, until their roots are equal; and Automerge."""
    figures = []
    for count, authors, with_automerge in ((10**4, 10, True), (10**5, 100, False), (10**6, 1_000, False)):
        for name, cost, other in measure(count, authors, with_automerge):
            about = f"{count:,} ops, {authors:,} authors, {name}"
            figures.append(Figure(f"{about}: both sides together", cost.total_bytes, "B"))
            figures.append(Figure(f"{about}: round trips", cost.exchanges, ""))
            figures.append(Figure(f"{about}: CPU, the busier side", max(cost.asker_s, cost.answerer_s) * 1e3, "ms"))
            if name == "fresh":
                figures.append(Figure(f"{about}: adding to the index", cost.adding_s / cost.ops * 1e6, "µs/op"))
            if other is not None:
                figures.append(Figure(f"{about}: Automerge", other.total_bytes, "B"))
    return figures


def main() -> None:
    """Measure one size and print a table."""
    parser = argparse.ArgumentParser(prog="python -m bench.reconcile", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("count", type=int, nargs="?", default=10**5)
    parser.add_argument("--authors", type=int, default=100)
    parser.add_argument("--automerge", action="store_true")
    parser.add_argument("--only", default="", help="the name of a shape")
    arguments = parser.parse_args()
    print(f"{'':36}{'bytes':>10}{'trips':>7}{'asker ms':>10}{'other ms':>10}{'µs/add':>8}")
    for name, *costs in measure(arguments.count, arguments.authors, arguments.automerge, arguments.only):
        for label, cost in zip((name, "  Automerge"), costs, strict=True):
            if cost is not None:
                adding = f"{cost.adding_s / cost.ops * 1e6:8.1f}" if cost.ops else ""
                print(
                    f"{label:36}{cost.total_bytes:10,}{cost.exchanges:7}"
                    f"{cost.asker_s * 1e3:10.2f}{cost.answerer_s * 1e3:10.2f}{adding}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
