"""Addresses: what strangers may name, and from how far each is reached."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdtchain.errors import PeerError, UsageError
from node.addresses import (
    URL_BYTES_MAX,
    Reach,
    find_reach,
    find_reach_of,
    group_of,
    machine_of,
    parse_peer_url,
    parse_told,
)


def test_what_people_write_is_read_in_all_its_forms() -> None:
    for text, url in (
        ("host:1", "http://host:1"),
        ("wss://host", "https://host"),
        ("https://host:443/a/b/", "https://host/a/b"),
        ("http://[::1]:8471", "http://[::1]:8471"),
        ("[fd00::1]:5", "http://[fd00::1]:5"),
        ("http://HOST:80", "http://host"),
    ):
        assert str(parse_peer_url(text)) == url
    assert str(parse_peer_url("https://h/a") / "sync") == "https://h/a/sync"


@pytest.mark.parametrize(
    "text", ["", "http://", "http://h:0", "http://h/?a", "http://h/a b", "http://h/a%2fb", "http://h/#x", "h" * 300]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_peer_url(text)


@pytest.mark.parametrize(
    ("text", "reach"),
    [
        ("127.0.0.1", Reach.LOOPBACK),
        ("::1", Reach.LOOPBACK),
        ("::ffff:127.0.0.1", Reach.LOOPBACK),
        ("2002:7f00:1::", Reach.LOOPBACK),
        ("64:ff9b::7f00:1", Reach.LOOPBACK),
        ("169.254.1.1", Reach.LINK),
        ("fe80::1", Reach.LINK),
        ("10.1.2.3", Reach.PRIVATE),
        ("100.64.0.1", Reach.PRIVATE),
        ("fd00::1", Reach.PRIVATE),
        ("8.8.8.8", Reach.PUBLIC),
        ("2606:4700::1111", Reach.PUBLIC),
        ("0.0.0.0", Reach.NEVER),
        ("::", Reach.NEVER),
        ("224.0.0.251", Reach.NEVER),
        ("ff02::1", Reach.NEVER),
        ("255.255.255.255", Reach.NEVER),
    ],
)
def test_each_address_is_reached_from_where_it_is(text: str, reach: Reach) -> None:
    assert find_reach(ipaddress.ip_address(text)) is reach
    assert find_reach_of(text) is reach


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:1", "http://10.0.0.1:1", "http://localhost:1", "http://a.localhost:1", "http://printer.local",
        "http://router.lan", "http://127.1:1", "http://2130706433:1", "http://0x7f.1:1", "http://a.b.0x7f:1",
        "http://0177.0.0.1:1", "http://host:1", "http://[::ffff:7f00:1]:1", "http://[fe80::1%25eth0]:1",
        "ws://8.8.8.8:1", "http://8.8.8.8:80", "http://8.8.8.8:1/", "http://user@8.8.8.8:1", "HTTP://8.8.8.8:1",
        "http://8.8.8.8:1/../a", "http://8.8.8.8:1/a?b=c", "http://example.org.:1/" + "a" * URL_BYTES_MAX, "gopher://8.8.8.8",
    ],
)  # fmt: skip
def test_a_public_peer_aims_nobody_at_what_is_near(text: str) -> None:
    with pytest.raises(PeerError):
        parse_told(text, Reach.PUBLIC)


def test_a_peer_tells_what_is_as_far_away_as_itself_or_farther() -> None:
    private = "http://192.168.1.5:8471"
    assert str(parse_told(private, Reach.PRIVATE)) == private
    assert str(parse_told("https://example.org/crdtchain", Reach.PUBLIC)) == "https://example.org/crdtchain"
    assert parse_told("http://127.0.0.1:1", Reach.LOOPBACK) and parse_told(private, Reach.LOOPBACK)
    for text in ("http://127.0.0.1:1", "http://169.254.0.1:1"):
        with pytest.raises(PeerError):
            parse_told(text, Reach.PRIVATE)
    with pytest.raises(PeerError):
        parse_told("http://0.0.0.0:1", Reach.LOOPBACK)


@given(st.text(max_size=300), st.sampled_from(list(Reach)[:4]))
def test_any_text_is_an_address_or_a_typed_error(text: str, reach: Reach) -> None:
    for told in (text, f"http://{text}", f"http://{text}:1", f"https://example.org/{text}"):
        try:
            url = parse_told(told, reach)
        except PeerError:
            continue
        assert str(url) == told and url.scheme in ("http", "https") and len(told) <= URL_BYTES_MAX
        group_of(url.host or "")


@given(st.ip_addresses())
def test_machines_and_groups_are_found_for_any_address(address: ipaddress.IPv4Address) -> None:
    assert machine_of(str(address)) and group_of(str(address))


def test_neighbours_are_one_group_and_aliases_one_machine() -> None:
    assert group_of("8.8.1.1") == group_of("8.8.200.1") != group_of("8.9.1.1")
    assert group_of("a.example.org") == group_of("b.example.org") != group_of("example.com")
    assert machine_of("2606:4700::1") == machine_of("2606:4700::ffff") != machine_of("2606:4701::1")
    assert machine_of("::ffff:8.8.8.8") == "8.8.8.8"
