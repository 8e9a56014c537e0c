"""Throw damaged bytes at every parser of strangers' bytes: only typed errors may come out, and soon.

    python -m tools.fuzz                        a minute on all parsers, and on a session that is lied to
    python -m tools.fuzz --seconds 600 op       ten minutes on one
    python -m tools.fuzz --seed 7               the same inputs again

What breaks a parser is written to .build/fuzz/, and belongs into a test. Exit code 1 if anything did.
"""

from __future__ import annotations

import argparse
import io
import random
import sys
import time
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Final

import numpy as np

from crdtchain import codec
from crdtchain.adapters.models import parse_model, parse_predictions
from crdtchain.errors import CrdtchainError
from crdtchain.learning.schema import ArraySpec, ModelSchema
from crdtchain.shapes import decode_op
from crdtchain.sync.messages import Get, Tree, TreeReply, decode_frame, encode_frame
from crdtchain.sync.reconcile import Tags, answer, prepare_parts
from crdtchain.sync.regions import decode_items, encode_items
from tests.builders import bulk_history
from tests.sync_pair import End, TableShelf, connect

SLOW_S: Final = 0.5
"""Far above what any input takes; a busy machine must not look like a fault."""
OUT: Final = Path(".build") / "fuzz"
SCHEMA: Final = ModelSchema("npz", (ArraySpec("bias", "float64", (3,)), ArraySpec("weights", "float64", (4, 3))))


def make_model() -> bytes:
    """Return a model of SCHEMA."""
    file = io.BytesIO()
    np.savez(file, bias=np.ones(3), weights=np.ones((4, 3)))
    return file.getvalue()


def make_predictions() -> bytes:
    """Return a file of predictions."""
    file = io.BytesIO()
    np.save(file, np.ones((5, 3)))
    return file.getvalue()


def make_shelves() -> list[TableShelf]:
    """Return two replicas with a few hundred ops, of which each lacks some."""
    keys = [f"{place // 3:010x}{sha256(str(place).encode()).hexdigest()}" for place in range(400)]
    return [TableShelf([key for place, key in enumerate(keys) if place % share]) for share in (7, 11)]


def record_talk() -> list[bytes]:
    """Return the frames of an honest conversation, as the dialler gets them."""
    one, other = make_shelves()
    dialler, listener = connect(one, other)
    frames: list[bytes] = []
    while dialler.out or listener.out:
        while dialler.out:
            listener.receive(dialler.out.popleft())
        while listener.out:
            frames.append(listener.out.popleft())
            dialler.receive(frames[-1])
    return frames


def join_frames(frames: Sequence[bytes]) -> bytes:
    """Put frames together, each behind its length."""
    return b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames)


def play_talk(data: bytes) -> None:
    """Give a session the frames of a conversation, and let it do what it wants to, until it has had enough."""
    shelf = make_shelves()[0]
    end: End = connect(shelf, TableShelf())[0]
    end.is_honest = False
    start = 0
    while start + 4 <= len(data):
        size = int.from_bytes(data[start : start + 4], "big")
        end.receive(data[start + 4 : start + 4 + size])
        start += 4 + size


def take_items(data: bytes) -> None:
    """Decode items, and take them as a question and as parts to get."""
    items = decode_items(data)
    if encode_items(items) != data:
        raise AssertionError("encodes to other bytes")
    tree = _SHELF.holdings.tree()
    prepare_parts(tree, Tags(bytes(16)), answer(tree, bytes(16), items).lacking)


_SHELF: Final = make_shelves()[0]


def take_frame(data: bytes) -> None:
    """Decode a frame, which has one encoding."""
    head, blocks = decode_frame(data)
    if encode_frame(head, blocks) != data:
        raise AssertionError("encodes to other bytes")


def make_targets() -> dict[str, tuple[Callable[[bytes], object], Sequence[bytes]]]:
    """Return each parser with valid inputs to start from."""
    blocks = [signed.block for signed in bulk_history(jobs=1)]
    frames = record_talk()
    heads = [decode_frame(frame)[0] for frame in frames]
    items = [head.items for head in heads if isinstance(head, Tree | TreeReply | Get) and head.items]
    return {
        "codec": (codec.decode, blocks),
        "op": (decode_op, blocks),
        "frame": (take_frame, frames),
        "items": (take_items, items),
        "session": (play_talk, [join_frames(frames), join_frames(frames[:3])]),
        "model": (lambda data: parse_model(data, SCHEMA), [make_model()]),
        "predictions": (lambda data: parse_predictions(data, 4_096), [make_predictions()]),
    }


def damage(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Return a damaged copy of some bytes."""
    mutable = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at = rng.randrange(len(mutable) + 1)
        match rng.randrange(6):
            case 0 if at < len(mutable):
                mutable[at] ^= 1 << rng.randrange(8)
            case 1 if at < len(mutable):
                mutable[at] = rng.choice((0x00, 0x1F, 0x5F, 0x7F, 0x9F, 0xBF, 0xD8, 0xFB, 0xFF))
            case 2:
                del mutable[at : at + rng.randrange(1, 9)]
            case 3:
                mutable[at:at] = rng.randbytes(rng.randrange(1, 9))
            case 4:
                mutable[at:at] = mutable[at : at + rng.randrange(1, 64)]
            case _:
                start = rng.randrange(len(other))
                mutable[at : at + 16] = other[start : start + rng.randrange(1, 64)]
    return bytes(mutable)


def find_fault(parse: Callable[[bytes], object], data: bytes) -> str | None:
    """Return what is wrong with how a parser takes some bytes, or None."""
    started = time.perf_counter()
    try:
        parse(data)
    except CrdtchainError:
        pass
    except Exception as error:  # whatever escapes is what we look for
        return f"{type(error).__name__}: {error}"
    seconds = time.perf_counter() - started
    return f"took {seconds:.2f} s" if seconds > SLOW_S else None


def fuzz(name: str, parse: Callable[[bytes], object], inputs: Sequence[bytes], seconds: float, seed: int) -> int:
    """Damage inputs for some seconds; returns the number of different faults."""
    rng = random.Random(f"{name} {seed}")
    end, count, faults = time.monotonic() + seconds, 0, set[str]()
    while time.monotonic() < end:
        data = damage(rng, rng.choice(inputs), rng.choice(inputs))
        fault = find_fault(parse, data)
        count += 1
        if fault is not None and fault not in faults:
            faults.add(fault)
            OUT.mkdir(parents=True, exist_ok=True)
            path = OUT / f"{name}-{sha256(data).hexdigest()[:16]}"
            path.write_bytes(data)
            print(f"{name}: {fault}: {path}", flush=True)
    print(f"{name:<12} {count:>9,} inputs, {len(faults)} faults", flush=True)
    return len(faults)


def main() -> int:
    """Fuzz what the arguments select."""
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz", description="Throw damaged bytes at the parsers.")
    targets = make_targets()
    parser.add_argument("names", nargs="*", help=f"of {', '.join(targets)}; all by default")
    parser.add_argument("--seconds", type=float, default=60, help="in all (60)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32), help="else drawn")
    arguments = parser.parse_args()
    names = arguments.names or list(targets)
    if not set(names) <= set(targets):
        parser.error(f"there are only {', '.join(targets)}")
    print(f"seed {arguments.seed}", flush=True)
    faults = sum(fuzz(name, *targets[name], arguments.seconds / len(names), arguments.seed) for name in names)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
