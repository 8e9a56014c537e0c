"""Token buckets."""

from __future__ import annotations

from node.pace import Bucket


def test_a_burst_passes_at_once_and_what_is_above_waits_for_its_share() -> None:
    now = [100.0]
    bucket = Bucket(rate=10, burst=50, now_s=lambda: now[0])
    assert bucket.take(50) == 0
    assert bucket.take(10) == 1
    now[0] += 1
    assert bucket.take(5) == 0.5
    now[0] += 100
    assert bucket.take(50) == 0
    assert bucket.take(1) == 0.1
