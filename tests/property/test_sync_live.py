"""Live ops by any path, at any time: honest sides never drop each other, and probes make up for what was left out."""

from __future__ import annotations

import random
from hashlib import sha256

from hypothesis import given
from hypothesis import strategies as st

from crdtchain.sync.live import Urgency
from crdtchain.sync.session import BUDGET_OP_BYTES
from tests.property.test_sync_tree import RNGS
from tests.sync_pair import TableShelf, connect, settle, talk


@given(RNGS, st.sampled_from([0, 500, 20_000]), st.integers(10, 200))
def test_honest_sides_put_up_with_any_order_of_things(rng: random.Random, padding: int, steps: int) -> None:
    shelves = [TableShelf([f"{0:010x}{sha256(b'first').hexdigest()}"], padding) for _ in range(2)]
    ends = connect(shelves[0], shelves[1], seed=rng.randrange(2**32))
    talk(*ends)
    for number in range(1, steps + 1):
        place = rng.randrange(2)
        end = ends[place]
        match rng.choice(("op", "op", "op", "announce", "prune", "probe", "talk", "talk", "store")):
            case "op":
                block = bytes.fromhex(f"{number:010x}{sha256(f'{number} {rng.random()}'.encode()).hexdigest()}")
                block += bytes(padding)
                shelves[place].put(block)
                if rng.random() < 0.3:
                    # The other side gets it from somebody else.
                    shelves[1 - place].put(block)
                pairs = [(shelves[place].find_id(block), block)]
                end.act(end.session.push(pairs, rng.choice(list(Urgency))))
            case "announce":
                end.act(end.session.announce())
            case "prune":
                if rng.random() < 0.3:
                    end.act(end.session.prune())
            case "probe":
                end.act(end.session.probe(is_forced=rng.random() < 0.3))
            case "talk":
                talk(*ends, frames=rng.randrange(6))
            case _:
                while end.takes:
                    end.store()
                end.stores = rng.random() < 0.7
        end.session.refill(BUDGET_OP_BYTES // 4)
    for end in ends:
        end.stores = True
        while end.takes:
            end.store()
    settle(*ends)
    assert set(shelves[0].blocks) == set(shelves[1].blocks)
