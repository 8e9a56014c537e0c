"""Which blobs go when there is no room, which part of a file a header asks for, and what a layout says."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdtchain import limits
from crdtchain.adapters.blob_index import FETCHED, PINNED, WHOLE
from crdtchain.codec import compute_blob_id
from crdtchain.scalars import BlobId
from node.blobs.keeping import PART, Item, choose_victims, find_reason
from node.blobs.lists import Layout
from node.server.blobs import RangeError, read_range

BLOBS = [compute_blob_id(bytes([number])) for number in range(12)]
ITEMS = st.dictionaries(
    st.sampled_from(BLOBS),
    st.builds(Item, st.integers(0, 100), st.sampled_from([WHOLE, PINNED, FETCHED, PART]), st.integers(0, 5)),
)


@given(ITEMS, st.frozensets(st.sampled_from(BLOBS)), st.integers(-5, 500))
def test_only_what_may_go_goes_and_no_more_than_has_to(
    items: dict[BlobId, Item], needed: frozenset[BlobId], space: int
) -> None:
    free = {
        blob: item
        for blob, item in items.items()
        if item.state == PART or (item.state == FETCHED and blob not in needed)
    }
    found = choose_victims(items.items(), needed, space)
    if found is None:
        assert sum(item.size for item in free.values()) < space
        return
    chosen = dict(found)
    assert len(chosen) == len(found) and chosen.items() <= free.items()
    assert sum(item.size for item in chosen.values()) >= space
    if found:
        assert sum(item.size for _, item in found[:-1]) < space
    for blob, item in free.items():
        if blob not in chosen:
            assert all((other.state != PART, other.used_ms) <= (item.state != PART, item.used_ms) for _, other in found)


def test_what_is_needed_says_what_for_before_anything_else() -> None:
    assert find_reason(BLOBS[0], Item(1, WHOLE, 0), {BLOBS[0]: "data"}) == "data"
    assert find_reason(BLOBS[0], Item(1, WHOLE, 0), {}) == "put here"
    assert find_reason(BLOBS[0], Item(1, PINNED, 0), {}) == "pinned"
    assert find_reason(BLOBS[0], Item(1, FETCHED, 0), {}) == ""
    assert find_reason(BLOBS[0], Item(1, PART, 0), {}) == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("bytes=0-0", (0, 1)),
        ("bytes=3-5", (3, 6)),
        ("bytes=3-", (3, 10)),
        ("bytes=9-99999", (9, 10)),
        ("bytes=-4", (6, 10)),
        ("bytes=-99", (0, 10)),
        (" bytes=1-2 ", (1, 3)),
        ("bytes=-", None),
        ("bytes=5-3", None),
        ("bytes=0-1,3-4", None),
        ("items=0-1", None),
        ("bytes=a-b", None),
        ("bytes=1 - 2", None),
        ("bytes=²-3", None),
        ("", None),
    ],
)
def test_one_range_is_read_and_all_else_means_everything(text: str | None, expected: tuple[int, int] | None) -> None:
    assert read_range(text, 10) == expected


@pytest.mark.parametrize(("text", "size"), [("bytes=10-", 10), ("bytes=10-12", 10), ("bytes=-0", 10), ("bytes=0-", 0)])
def test_a_range_with_nothing_in_it_is_an_error(text: str, size: int) -> None:
    with pytest.raises(RangeError):
        read_range(text, size)


@given(st.text(max_size=30), st.integers(0, 1_000))
def test_any_header_is_a_part_or_everything_or_an_error(text: str, size: int) -> None:
    try:
        found = read_range(text, size)
    except RangeError:
        return
    assert found is None or 0 <= found[0] < found[1] <= size


@given(st.integers(limits.CHUNK_BYTES + 1, limits.BLOB_BYTES_MAX))
def test_the_chunks_of_a_layout_cover_it_without_a_gap(size: int) -> None:
    count = -(-size // limits.CHUNK_BYTES)
    layout = Layout(BLOBS[0], size, tuple(BLOBS[:1] * count))
    spans = [layout.span(index) for index in range(count)]
    assert spans[0][0] == 0 and sum(length for _, length in spans) == size
    assert all(start + length == other for (start, length), (other, _) in pairwise(spans))
    assert all(0 < length <= limits.CHUNK_BYTES for _, length in spans)
