"""The address book: what it keeps, whom it tells, and that liars gain nothing."""

from __future__ import annotations

import ipaddress
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from crdtchain.adapters.address_book import AddressRow, SqliteAddresses
from crdtchain.adapters.sqlite_store import SqliteStore
from crdtchain.scalars import Author
from node.book import (
    RECENT_MS,
    ROWS_MAX,
    STRANGE_TRIES_MAX,
    TELL_MAX,
    TOLD_MAX,
    Book,
    Source,
    pick_addresses_to_tell,
)

ALICE, BOB = Author(b"a" * 32), Author(b"b" * 32)
PUBLIC = "9.9.9.9"


class Clock:
    """Milliseconds that pass when a test says so."""

    def __init__(self) -> None:
        self.ms = 1_800_000_000_000

    def __call__(self) -> int:
        return self.ms


def make_book(clock: Clock | None = None) -> Book:
    return Book(None, clock or Clock(), random.Random(7))


def told(count: int, first: int = 0) -> list[str]:
    return [f"http://8.{number // 250}.{number % 250}.1:1" for number in range(first, first + count)]


def test_configured_addresses_are_tried_for_ever_and_others_are_given_up() -> None:
    clock = Clock()
    book = make_book(clock)
    book.configure(["http://127.0.0.1:1"])
    book.note_told(["http://8.8.8.8:1"], ALICE, PUBLIC)
    pauses = []
    for _ in range(50):
        for row in book.due():
            book.note_try(row.url)
            book.note_failure(row.url)
            if row.source == Source.CONFIGURED:
                pauses.append(row.next_ms - clock.ms)
        clock.ms += 48 * RECENT_MS
    assert list(book.rows) == ["http://127.0.0.1:1"]
    assert pauses[0] < 400 and max(pauses) <= 39_000 and len(pauses) == 50


def test_a_told_address_is_tried_five_times_an_hour_and_more_apart() -> None:
    clock = Clock()
    book = make_book(clock)
    tries = []
    for _ in range(14 * 24 * 60):
        book.note_told(["http://8.8.8.8:1", "http://8.8.8.8:2"], ALICE, PUBLIC)
        due = book.due()
        # Of one machine one address at a time: the second is not due once the first was tried.
        if due:
            book.note_try(due[0].url)
            book.note_failure(due[0].url)
            tries.append(clock.ms)
            assert not book.due()
        clock.ms += 60_000
    assert min(after - before for before, after in pairwise(tries)) >= RECENT_MS
    # Told again and again for two weeks, under two addresses: never more than once an hour, and soon less.
    assert len(tries) < 14 * 24


def test_many_told_addresses_of_one_machine_or_of_many_are_bounded() -> None:
    clock = Clock()
    book = make_book(clock)
    for number in range(40):
        book.note_told(told(64, 64 * number), Author(bytes([number]) * 32), PUBLIC)
    assert len(book.rows) <= ROWS_MAX
    while due := book.due():
        book.note_try(due[0].url)
    assert len(book._tries) == STRANGE_TRIES_MAX
    assert not book.due()
    clock.ms += RECENT_MS + 1
    assert book.due()


def test_one_teller_has_few_rows_and_reached_ones_stay_when_the_book_is_full() -> None:
    clock = Clock()
    book = make_book(clock)
    book.configure(["http://mine.example.org:1"])
    book.note_told(["http://7.7.7.7:1"], BOB, PUBLIC)
    book.note_node("http://7.7.7.7:1", BOB)
    assert book.note_told(told(200), ALICE, PUBLIC) == TOLD_MAX
    assert book.note_told(told(64, 300), ALICE, PUBLIC) == 0
    for number in range(200):
        clock.ms += 1
        book.note_told(told(64, 1_000 + 64 * number), Author(number.to_bytes(32, "big")), PUBLIC)
    assert ROWS_MAX - 64 < len(book.rows) <= ROWS_MAX
    assert {"http://mine.example.org:1", "http://7.7.7.7:1"} <= set(book.rows)


def test_what_people_named_stays_also_among_addresses_that_were_all_reached() -> None:
    book = make_book()
    book.configure(["http://mine.example.org:1"])
    for start in range(0, ROWS_MAX + 64, 64):
        urls = told(64, start)
        book.note_told(urls, ALICE, PUBLIC)
        for url in urls:
            book.note_node(url, BOB)
    assert ROWS_MAX - 64 < len(book.rows) <= ROWS_MAX and "http://mine.example.org:1" in book.rows


def test_a_teller_may_not_aim_at_what_is_nearer_than_itself() -> None:
    book = make_book()
    near = ["http://127.0.0.1:1", "http://192.168.0.1:1", "http://169.254.0.1:1", "http://8.8.8.8:1"]
    assert book.note_told(near, ALICE) == 1
    assert book.note_told(near, ALICE, "http://192.168.0.9:4") == 2
    assert book.note_told(near, ALICE, "127.0.0.1") == 4
    book.note_inbound("http://0.0.0.0:1", BOB)
    book.note_local("http://224.0.0.1:1")
    book.note_local("http://192.168.3.3:1/a")
    assert {"http://192.168.3.3:1/a"} == {row.url for row in book.rows.values() if row.source == Source.MDNS}


def test_a_told_name_leads_to_no_nearer_address_and_to_none_twice_an_hour() -> None:
    book = make_book()
    book.note_told(["http://a.example.org:1", "http://b.example.org:1"], ALICE, PUBLIC)
    loopback, public = ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("8.8.4.4")
    assert not book.may_connect("http://a.example.org:1", loopback)
    assert book.may_connect("http://a.example.org:1", public)
    assert not book.may_connect("http://b.example.org:1", public)
    # Also one that was reached once may not move in.
    book.note_node("http://a.example.org:1", BOB)
    assert not book.may_connect("http://a.example.org:1", loopback)
    assert book.may_connect("http://a.example.org:1", public)
    book.configure(["http://a.example.org:1"])
    assert book.may_connect("http://a.example.org:1", loopback)
    assert not book.may_connect("http://unknown.example.org:1", public)


def test_what_was_configured_and_reached_is_remembered_and_else_forgotten() -> None:
    book = make_book()
    book.configure(["http://a:1", "http://b:1"])
    book.note_node("http://a:1", ALICE)
    book.configure([])
    assert {url: row.source for url, row in book.rows.items()} == {"http://a:1": Source.REMEMBERED}
    book.configure(["a:1"])
    assert book.rows["http://a:1"].source == Source.CONFIGURED and book.rows["http://a:1"].node == ALICE


def test_a_change_of_network_ends_pauses_but_not_those_of_strangers() -> None:
    book = make_book()
    book.configure(["http://a:1"])
    book.note_told(["http://8.8.8.8:1"], ALICE, PUBLIC)
    for url in list(book.rows):
        book.note_try(url)
        book.note_failure(url)
    assert not book.due()
    book.reset_pauses()
    assert [row.url for row in book.due()] == ["http://a:1"]


def test_a_clock_that_was_set_back_does_not_stop_dialling() -> None:
    clock = Clock()
    book = make_book(clock)
    book.configure(["http://a:1"])
    book.note_failure("http://a:1")
    clock.ms -= 86_400_000
    assert [row.url for row in book.due()] == ["http://a:1"]


def test_only_what_was_reached_lately_is_told_and_nothing_nearer_than_the_listener() -> None:
    clock = Clock()
    book = make_book(clock)
    urls = [
        "http://127.0.0.1:1",
        "http://192.168.0.1:1",
        "http://8.8.8.8:1",
        "https://example.org/a",
        "http://7.7.7.7:1",
    ]
    book.configure(urls)
    for url in urls[:4]:
        book.note_node(url, ALICE)
    own = "https://me.example.org/crdtchain"
    assert set(pick_addresses_to_tell(book, PUBLIC, own)) == {own, *urls[2:4]}
    assert pick_addresses_to_tell(book, "", own)[0] == own
    assert set(pick_addresses_to_tell(book, "http://10.0.0.1:4")) == set(urls[1:4])
    assert set(pick_addresses_to_tell(book, "127.0.0.1")) == set(urls[:4])
    assert pick_addresses_to_tell(book, "127.0.0.1", to_key=ALICE) == []
    many = make_book(clock)
    many.configure(told(64))
    for url in told(64):
        many.note_node(url, BOB)
    assert len(pick_addresses_to_tell(many, PUBLIC, own)) == TELL_MAX
    clock.ms += RECENT_MS // 2
    book.note_alive(lambda node: node == ALICE)
    many.note_alive(lambda node: False)
    clock.ms += RECENT_MS // 2
    assert set(pick_addresses_to_tell(book, PUBLIC)) == set(urls[2:4])
    assert pick_addresses_to_tell(many, PUBLIC) == []


def test_choosing_prefers_what_was_reached_other_networks_and_gives_each_teller_its_share() -> None:
    clock = Clock()
    book = make_book(clock)
    book.note_told(told(64), ALICE, PUBLIC)
    book.note_told(["http://44.0.0.1:1"], BOB, PUBLIC)
    rows = list(book.rows.values())
    shares = Counter(row.told_by for row in (book.choose(rows, ()) for _ in range(400)) if row is not None)
    assert 120 < shares[BOB] < 280
    book.note_node("http://44.0.0.1:1", BOB)
    chosen = Counter(row.url for row in (book.choose(rows, ()) for _ in range(400)) if row is not None)
    assert chosen["http://44.0.0.1:1"] > 200 and len(chosen) > 10
    found = book.choose(rows, {"44.0.0.0/16"})
    assert found is not None and found.url != "http://44.0.0.1:1"
    assert book.choose([], ()) is None


@pytest.mark.asyncio
async def test_the_book_is_there_after_a_restart(tmp_path: Path) -> None:
    clock = Clock()
    store = SqliteStore(tmp_path)
    await store.open()
    try:
        book = Book(SqliteAddresses.of(store), clock)
        book.configure(["http://a:1", "http://b:1"])
        book.note_told(["http://8.8.8.8:1"], ALICE, PUBLIC)
        book.note_node("http://a:1", BOB)
        book.forget("http://b:1")
        await book.flush()
        before = dict(book.rows)
        await SqliteAddresses.of(store).save([AddressRow("http://c:1", "of a newer version")], [])
    finally:
        await store.close()
    await store.open()
    try:
        again = Book(SqliteAddresses.of(store), clock)
        await again.load()
        assert again.rows == before and set(again.rows) == {"http://a:1", "http://8.8.8.8:1"}
        await again.flush()
        assert len(await SqliteAddresses.of(store).load()) == 2
    finally:
        await store.close()


class Storm(RuleBasedStateMachine):
    """Anything may be told by anybody at any time; the bounds hold."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.book = make_book(self.clock)
        self.book.configure(["http://mine:1"])
        self.tried: dict[str, int] = {}

    @rule(first=st.integers(0, 2_000), count=st.integers(0, 80), teller=st.integers(0, 30))
    def tell(self, first: int, count: int, teller: int) -> None:
        self.book.note_told(told(count, first), Author(bytes([teller]) * 32), PUBLIC)

    @rule(ms=st.integers(0, 2 * RECENT_MS))
    def pass_time(self, ms: int) -> None:
        self.clock.ms += ms

    @rule(is_reached=st.booleans(), count=st.integers(1, 20))
    def dial(self, is_reached: bool, count: int) -> None:
        for _ in range(count):
            row = self.book.choose([row for row in self.book.due() if row.source == Source.TOLD], ())
            if row is None:
                return
            if not row.success_ms:
                assert self.clock.ms - self.tried.get(row.url, -RECENT_MS) >= RECENT_MS
                self.tried[row.url] = self.clock.ms
            self.book.note_try(row.url)
            if is_reached:
                self.book.note_node(row.url, BOB)
            else:
                self.book.note_failure(row.url)

    @invariant()
    def is_bounded(self) -> None:
        rows = self.book.rows.values()
        tellers = Counter(row.told_by for row in rows if row.source == Source.TOLD and not row.success_ms)
        assert len(rows) <= ROWS_MAX and "http://mine:1" in self.book.rows
        assert max(tellers.values(), default=0) <= TOLD_MAX
        assert len(self.book._tries) <= STRANGE_TRIES_MAX


Storm.TestCase.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
TestStorm = Storm.TestCase
