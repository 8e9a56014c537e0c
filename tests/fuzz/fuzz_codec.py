"""Fuzz the codec: `python tests/fuzz/fuzz_codec.py [SECONDS]`, guided by atheris where it is installed, else at random.

Whatever the bytes: the answer is a value that encodes to them again, or a DecodeError, within 50 ms. Bytes that break
this are printed as hex; they belong into tests/vectors or a test of their own.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import random
import sys
import time
from pathlib import Path

from crdtchain import codec
from crdtchain.errors import DecodeError

SECONDS_DEFAULT = 10
ANSWER_S_MAX = 0.05
VECTORS = Path(__file__).parent.parent / "vectors"
INTERESTING = bytes.fromhex("0017181a1b20383b4057585b5f6061787b7f80989b9fa0a1b8bbbfc0d82af4f5f6f7f8f9fbff")


def check(data: bytes) -> None:
    """Judge one input.

    Raises:
        AssertionError: the codec took too long, or what it accepted does not encode to the same bytes.
    """
    started = time.perf_counter()
    try:
        value = codec.decode(data)
    except DecodeError:
        value = None
    else:
        assert codec.encode(value, bounded=True) == data, f"encodes to other bytes: {data.hex()}"
    assert time.perf_counter() - started < ANSWER_S_MAX or is_slow_again(data), f"too slow: {data.hex()}"


def is_slow_again(data: bytes) -> bool:
    """Say whether a slow answer was the machine's fault: then it is fast when asked again."""
    started = time.perf_counter()
    with contextlib.suppress(DecodeError):
        codec.decode(data)
    return time.perf_counter() - started < ANSWER_S_MAX


def load_seeds() -> list[bytes]:
    """Load the vectors as inputs to start from, the shorter ones."""
    seeds = []
    for name in ("dagcbor.json", "bounds.json"):
        seeds += [bytes.fromhex(case["hex"]) for case in json.loads((VECTORS / name).read_text())["cases"]]
    return [seed for seed in seeds if 0 < len(seed) <= 2_000]


def mutate(data: bytes, seeds: list[bytes], source: random.Random) -> bytes:
    """Change an input in a few places."""
    content = bytearray(data)
    for _ in range(source.randint(1, 4)):
        position = source.randint(0, len(content))
        match source.randrange(5):
            case 0 if position < len(content):
                content[position] = source.choice(INTERESTING)
            case 1 if position < len(content):
                content[position] ^= 1 << source.randrange(8)
            case 2:
                content[position:position] = source.choice(seeds)[:64]
            case 3:
                del content[position : position + source.randint(1, 8)]
            case _:
                content[:position] = bytes([source.choice(INTERESTING)]) + content[:position]
    return bytes(content[:70_000])


def fuzz_at_random(seconds: float, seed: int) -> int:
    """Check mutated seeds for so long; return how many."""
    source, seeds = random.Random(seed), load_seeds()
    ends = time.monotonic() + seconds
    pool, count = list(seeds), 0
    while time.monotonic() < ends:
        data = mutate(source.choice(pool), seeds, source)
        try:
            check(data)
        except BaseException:
            print(f"seed {seed}, input {count}: {data.hex()}", file=sys.stderr)
            raise
        count += 1
        if source.randrange(20) == 0:
            pool[source.randrange(len(pool))] = data
    return count


def main() -> None:
    """Run for the seconds given as the first argument."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS_DEFAULT
    if importlib.util.find_spec("atheris") is not None:
        atheris = importlib.import_module("atheris")
        atheris.instrument_all()
        atheris.Setup([sys.argv[0], f"-max_total_time={int(seconds)}", "-max_len=70000"], check)
        atheris.Fuzz()
    else:
        seed = random.SystemRandom().randrange(2**32)
        print(f"{fuzz_at_random(seconds, seed)} inputs, no fault (seed {seed})")


if __name__ == "__main__":
    main()
