"""Settings: defaults < file < environment < flags, and nothing unknown."""

from __future__ import annotations

from pathlib import Path

import pytest

from crdtchain.errors import UsageError
from node.addresses import parse_peer_url
from node.config import Settings, default_data_dir, load_settings, split_host_port


def test_each_layer_overrides_the_one_below(tmp_path: Path) -> None:
    assert load_settings(tmp_path, environ={}) == Settings()
    (tmp_path / "config.toml").write_text('listen = "0.0.0.0:1"\ntip_wait_s = 3\npeers = ["http://a:1"]\n')
    environ = {"CRDTCHAIN_TIP_WAIT_S": "4", "CRDTCHAIN_WITNESS": "true", "CRDTCHAIN_DATA": "elsewhere", "HOME": "/"}
    found = load_settings(tmp_path, {"tip_wait_s": 5, "local": None}, environ)
    assert found == Settings(listen="0.0.0.0:1", tip_wait_s=5, peers=("http://a:1",), witness=True)
    assert load_settings(tmp_path, {}, {"CRDTCHAIN_PEERS": "http://b:2, http://c:3"}).peers == (
        "http://b:2",
        "http://c:3",
    )


@pytest.mark.parametrize(
    ("file", "environ", "flags", "text"),
    [
        ('lisen = "x:1"', {}, {}, "did you mean listen"),
        ("", {"CRDTCHAIN_LISEN": "x:1"}, {}, "did you mean listen"),
        ("", {}, {"lisen": "x:1"}, "did you mean listen"),
        ("witness = 3", {}, {}, r"setting witness"),
        ("", {"CRDTCHAIN_WITNESS": "perhaps"}, {}, "true or false"),
        ("", {"CRDTCHAIN_TIP_WAIT_S": "soon"}, {}, "whole number"),
        ("tip_wait_s = -1", {}, {}, r"setting tip_wait_s"),
        ('local = "8470"', {}, {}, r"setting local is wrong: expected HOST:PORT"),
        ('log_level = "loud"', {}, {}, r"setting log_level"),
        ("this is no toml", {}, {}, "not TOML"),
    ],
)
def test_what_is_unknown_or_wrong_is_refused_with_help(
    tmp_path: Path, file: str, environ: dict[str, str], flags: dict[str, object], text: str
) -> None:
    (tmp_path / "config.toml").write_text(file)
    with pytest.raises(UsageError, match=text):
        load_settings(tmp_path, flags, environ)


def test_the_data_folder_is_the_named_one_or_the_platforms() -> None:
    assert default_data_dir({"CRDTCHAIN_DATA": "/somewhere"}) == Path("/somewhere")
    assert default_data_dir({}).name == "crdtchain"


def test_addresses_are_read_strictly() -> None:
    assert split_host_port("127.0.0.1:80", "x") == ("127.0.0.1", 80)
    assert split_host_port("[::1]:0", "x") == ("::1", 0)
    for text in ("80", "host:", "host:70000", "host:-1", "host:1x"):
        with pytest.raises(UsageError):
            split_host_port(text, "x")
    assert str(parse_peer_url("ws://host:1/")) == "http://host:1"
    assert str(parse_peer_url("host:1")) == "http://host:1"
    assert str(parse_peer_url("https://host/a/path/")) == "https://host/a/path"
    for text in ("ftp://host:1", "http://", "http://host:1/a?b", "http://user@host:1", "http://host:99999"):
        with pytest.raises(UsageError):
            parse_peer_url(text)


def test_every_setting_says_what_it_is() -> None:
    source = Path(__file__).parents[3] / "node" / "config.py"
    lines = source.read_text().splitlines()
    for name in Settings.__struct_fields__:
        (place,) = [number for number, line in enumerate(lines) if line.startswith(f"    {name}: ")]
        assert lines[place + 1].startswith('    """'), name


def test_a_wrong_choice_is_told_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_settings(tmp_path, {"log_level": "loud"}, {})
    assert str(caught.value) == (
        "the setting log_level is wrong: invalid enum value 'loud'; it is one of debug, info, warning, error"
    )
