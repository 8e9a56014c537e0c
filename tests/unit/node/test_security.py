"""Who may ask the local port for what."""

from __future__ import annotations

import itertools

import pytest
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from node.server.problems import Problem
from node.server.security import Guard, local_hosts

TOKEN = "t" * 43
HOST = "127.0.0.1:8470"
GUARD = Guard(TOKEN, local_hosts("127.0.0.1", 8470), ["https://page.example"])

HOSTS = {
    HOST: True,
    "localhost:8470": True,
    "[::1]:8470": True,
    "127.0.0.1": False,
    "evil.example:8470": False,
    "": False,
}
ORIGINS = {
    None: True,
    "http://127.0.0.1:8470": True,
    "https://page.example": True,
    "http://127.0.0.1:8471": False,
    "https://127.0.0.1:8470": False,
    "null": False,
    "http://evil.example": False,
}
SITES = {None: True, "none": True, "same-origin": True, "same-site": False, "cross-site": False}
TOKENS = {f"Bearer {TOKEN}": True, f"bearer {TOKEN}": True, f"Bearer {TOKEN}x": False, TOKEN: False, None: False}
TYPES = {
    "application/json": True,
    "application/json; charset=utf-8": True,
    "application/cbor": True,
    "text/plain": False,
    "multipart/form-data": False,
    None: False,
}


def is_let_in(method: str, path: str, *headers: tuple[str, str | None], guard: Guard = GUARD) -> bool:
    given = CIMultiDict([(name, value) for name, value in headers if value is not None])
    try:
        guard.check(make_mocked_request(method, path, headers=given))
    except Problem as problem:
        assert 400 <= problem.status < 500
        return False
    return True


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
def test_only_what_is_right_in_every_respect_is_let_in(method: str) -> None:
    kinds = {None: True} if method == "GET" else TYPES
    cases = itertools.product(HOSTS.items(), ORIGINS.items(), SITES.items(), TOKENS.items(), kinds.items())
    for host, origin, site, token, kind in cases:
        if sum(not part[1] for part in (host, origin, site, token, kind)) > 1:
            # Several faults at once are refused for the first of them.
            continue
        headers = [
            ("Host", host[0]),
            ("Origin", origin[0]),
            ("Sec-Fetch-Site", site[0]),
            ("Authorization", token[0]),
            ("Content-Type", kind[0]),
        ]
        expected = host[1] and origin[1] and site[1] and token[1] and kind[1]
        assert is_let_in(method, "/api/v1/ops", *headers) == expected, headers


def test_static_files_need_no_token_but_the_right_host() -> None:
    assert is_let_in("GET", "/", ("Host", HOST))
    assert is_let_in("GET", "/healthz", ("Host", HOST))
    assert not is_let_in("GET", "/", ("Host", "evil.example"))
    assert not is_let_in("GET", "/", ("Host", HOST), ("Origin", "http://evil.example"))


def test_headers_that_come_twice_are_refused() -> None:
    right = [("Host", HOST), ("Authorization", f"Bearer {TOKEN}")]
    assert is_let_in("GET", "/api/v1/status", *right)
    assert not is_let_in("GET", "/api/v1/status", *right, ("Host", HOST))
    assert not is_let_in("GET", "/api/v1/status", *right, ("Authorization", f"Bearer {TOKEN}"))
    assert not is_let_in(
        "GET", "/api/v1/status", *right, ("Origin", f"http://{HOST}"), ("Origin", "http://evil.example")
    )


def test_a_websocket_may_bring_the_token_as_a_subprotocol_and_nothing_else_may() -> None:
    offer = ("Sec-WebSocket-Protocol", f"crdtchain.sync.1, crdtchain.token.{TOKEN}")
    upgrade = ("Upgrade", "websocket")
    assert is_let_in("GET", "/api/v1/sync", ("Host", HOST), offer, upgrade)
    assert not is_let_in("GET", "/api/v1/sync", ("Host", HOST), offer)
    wrong = ("Sec-WebSocket-Protocol", "crdtchain.sync.1, crdtchain.token.x")
    assert not is_let_in("GET", "/api/v1/sync", ("Host", HOST), wrong, upgrade)
    assert not is_let_in("GET", "/api/v1/sync", ("Host", HOST), ("Origin", "http://evil.example"), offer, upgrade)


def test_hosts_follow_the_address_that_is_listened_at() -> None:
    assert local_hosts("127.0.0.1", 1) == {"127.0.0.1:1", "localhost:1", "[::1]:1"}
    assert local_hosts("0.0.0.0", 1, ["me.example:1"]) == {"127.0.0.1:1", "localhost:1", "[::1]:1", "me.example:1"}
    assert local_hosts("192.0.2.7", 1) == {"192.0.2.7:1"}


def test_no_token_of_other_characters_is_an_error() -> None:
    assert not is_let_in("GET", "/api/v1/ops", ("Host", HOST), ("Authorization", "Bearer \u20ac"))
