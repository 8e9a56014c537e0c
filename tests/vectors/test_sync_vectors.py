"""The sync protocol's vectors: the package comes to what a plain second implementation came to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from crdtchain.errors import PeerError
from crdtchain.scalars import OpId
from crdtchain.sync import messages, regions
from crdtchain.sync.messages import Hello, auth_bytes, decode_frame, encode_frame
from crdtchain.sync.reconcile import Tags, describe
from crdtchain.sync.tree import RangeTree
from tests.vectors.make_sync import make_vectors

FILE = Path(__file__).with_name("sync.json")
VECTORS: dict[str, Any] = json.loads(FILE.read_text())
OP_PREFIX = b"\x01\x71\x12\x20"


def make_item(case: dict[str, Any]) -> regions.Item:
    tags = tuple(bytes.fromhex(tag) for tag in case.get("tags", ()))
    children = sum(1 << place for place in case.get("children", ()))
    match case["sort"]:
        case "leaf":
            return regions.LeafView(case["prefix"], tags)
        case "branch":
            return regions.BranchView(case["prefix"], case["base"], children, tags)
        case "whole":
            return regions.Whole(case["prefix"], children)
        case "only":
            return regions.Only(case["prefix"], tags)
    return regions.Except(case["prefix"], tags)


def by_id(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", VECTORS[name], ids=[case.get("id") for case in VECTORS[name]])


def test_the_file_is_what_its_script_writes() -> None:
    assert json.loads(json.dumps(make_vectors())) == VECTORS


@by_id("trees")
def test_roots_and_views_follow_from_the_set(case: dict[str, Any]) -> None:
    ids = [OpId(OP_PREFIX + bytes.fromhex(digest)) for _, digest in case["ops"]]
    depths = [depth for depth, _ in case["ops"]]
    tags = Tags(bytes.fromhex(VECTORS["salt"]))
    for tree in (RangeTree(ids, depths, range(len(ids))), RangeTree(ids, depths)):
        for number in range(len(tree), len(ids)):
            tree.add(number)
        assert tree.root().hex() == case["root"]
        views = []
        for expected in case["views"]:
            prefix = expected["prefix"][: expected.get("base", len(expected["prefix"]))]
            views.append(describe(tree, tags, prefix))
            assert views[-1] == make_item(expected)
        assert regions.encode_items(views).hex() == case["items"]


@pytest.mark.parametrize("case", VECTORS["tags"])
def test_tags_are_salted(case: dict[str, str]) -> None:
    assert Tags(bytes.fromhex(case["salt"])).tag(bytes.fromhex(case["value"])).hex() == case["tag"]


@by_id("items")
def test_items_have_one_encoding(case: dict[str, Any]) -> None:
    data = bytes.fromhex(case["hex"])
    if case["accept"]:
        items = [make_item(item) for item in case["items"]]
        assert regions.encode_items(items) == data
        assert regions.decode_items(data) == items
    else:
        with pytest.raises(PeerError):
            regions.decode_items(data)


@by_id("frames")
def test_messages_have_one_frame(case: dict[str, Any]) -> None:
    frame = bytes.fromhex(case["frame"])
    if case["accept"]:
        head, blocks = decode_frame(frame)
        assert type(head) is getattr(messages, case["id"])
        assert [block.hex() for block in blocks] == case["blocks"]
        assert encode_frame(head, blocks) == frame
        assert frame[2:].startswith(bytes.fromhex(case["head"]))
    else:
        with pytest.raises(PeerError):
            decode_frame(frame)


def test_every_message_has_a_vector() -> None:
    assert {case["id"] for case in VECTORS["frames"] if case["accept"]} == {
        kind.__name__ for kind in messages.Head.__args__
    }


@by_id("auths")
def test_both_roles_sign_other_bytes(case: dict[str, Any]) -> None:
    dialler, _ = decode_frame(bytes.fromhex(case["dialler"]))
    listener, _ = decode_frame(bytes.fromhex(case["listener"]))
    assert isinstance(dialler, Hello) and isinstance(listener, Hello)
    assert auth_bytes(dialler, listener, case["id"] == "dialler").hex() == case["signed"]
