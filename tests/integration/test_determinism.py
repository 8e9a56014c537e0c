"""One set of ops, one digest: in other processes, under other hash seeds, in another order of arrival."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPLAY = """
import sys
from crdtchain.codec import format_cid
from crdtchain.ledger.state import Ledger
from tests.builders import bulk_history

history = [signed.op for signed in bulk_history(jobs=2, authors=5)]
ledger = Ledger(history[0])
rest = history[1:]
if sys.argv[1] == "backwards":
    # Among the ops that could come next, always the one that was made last.
    while rest:
        ready = next(op for op in reversed(rest) if not ledger.dag.missing(op))
        rest.remove(ready)
        ledger.add(ready)
else:
    for op in rest:
        ledger.add(op)
print(len(ledger), ledger.heads_digest().hex(), ledger.state_digest().hex())
"""


def test_hash_seed_process_and_order_change_no_digest() -> None:
    root = Path(__file__).parents[2]
    answers = set()
    for seed, order in (("0", "forwards"), ("1", "forwards"), ("2", "forwards"), ("0", "backwards")):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(root)}
        done = subprocess.run(
            [sys.executable, "-c", REPLAY, order], env=environment, capture_output=True, text=True, check=True, cwd=root
        )
        answers.add(done.stdout.strip())
    assert len(answers) == 1
    assert int(answers.pop().split()[0]) > 300
