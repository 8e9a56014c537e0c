"""A node's settings: defaults < config.toml in the data folder < environment (CRDTCHAIN_…) < flags.

Every setting is a field below; its docstring is its documentation. An unknown key is refused with the nearest known
one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_type_hints

import msgspec
from msgspec import Meta, Struct

from crdtchain.errors import UsageError
from node.addresses import parse_peer_url
from node.tables import find_nearest, load_toml

CONFIG_FILE: Final = "config.toml"
ENV_PREFIX: Final = "CRDTCHAIN_"

_HOST_PORT: Final = r"^[^\s/]*:[0-9]{1,5}$"
HostPort = Annotated[str, Meta(pattern=_HOST_PORT)]


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings of `crdtchain serve`."""

    local: HostPort = "127.0.0.1:8470"
    """HOST:PORT of the local port (page, API). Port 0 takes any free one. Keep it on loopback: whoever reaches it and
    has the token can sign."""
    listen: str = ""
    """HOST:PORT of the peer port, for other nodes; empty: none, and the node only dials out. Port 0 takes any free
    one."""
    peers: tuple[str, ...] = ()
    """Addresses of other nodes' peer ports, http://HOST:PORT or https://HOST/PREFIX each. More stand in `peers.list`
    (`crdtchain peers add`); once reached they are remembered."""
    public_url: str = ""
    """Address of this node's peer port as others reach it, behind a router or a reverse proxy; it is told to peers."""
    discover: bool = True
    """Look for further nodes: those that peers tell of, that dialled in, and on the local network, and tell peers of
    them. Without it this node dials the addresses that people gave it and no others."""
    mdns: Literal["auto", "on", "off"] = "auto"
    """Find nodes of the same network on the local network, and be found there; auto: when the peer port listens on
    more than loopback."""
    allow: str = ""
    """A file with the did:keys of the nodes that may connect, both ways; relative to the data folder. Without this
    setting it is `peers.allow` if there is such a file; else every node may."""
    tls_cert: str = ""
    """Certificate (with its chain) of the peer port, a PEM file; with `tls_key` the peer port speaks https."""
    tls_key: str = ""
    """Key of `tls_cert`, a PEM file without passphrase."""
    tls_ca: str = ""
    """Further authorities, a PEM file, by which the certificates of dialled peers are checked."""
    path_prefix: str = ""
    """Both ports answer below this path too, such as /crdtchain, for a reverse proxy that passes it on."""
    trusted_proxies: tuple[str, ...] = ()
    """IP addresses or networks of reverse proxies; from them X-Forwarded-For says who asks."""
    force_offline: bool = False
    """Sign though the data folder looks copied or restored and no peer has confirmed the own chain: if another copy
    has signed since, the account is frozen for ever. Only as a flag, for one start."""
    jobs: tuple[str, ...] = ()
    """Keep only these jobs, by their ids, and what is needed to judge them: a partial replica. What was added with
    `crdtchain scope add` counts as well."""
    job_tags: tuple[str, ...] = ()
    """As `jobs`: the jobs that have one of these tags."""
    own_jobs: bool = False
    """As `jobs`: the jobs that this node's key posts."""
    witness: bool = False
    """Do a witness's duty; needs a key that genesis names as a witness."""
    hosts: tuple[str, ...] = ()
    """Further values of the Host header that the local port answers to, HOST:PORT each, besides its own address and
    localhost."""
    origins: tuple[str, ...] = ()
    """Further web origins that may use the local port, besides its own page."""
    tip_wait_s: Annotated[int, Meta(ge=0, le=3_600)] = 10
    """After a start, wait so long for a configured peer's copy of the own chain before signing, s."""
    debounce_ms: Annotated[int, Meta(ge=0, le=60_000)] = 100
    """A witness gathers what comes for so long before it beats, ms."""
    op_quota_mib: Annotated[int, Meta(ge=1, le=2**30)] = 65_536
    """Disk space for the ledger, MiB; above 90 % of it, or of what the disk has room for, others' ops and blobs are
    refused, and own ops still written."""
    blob_quota_mib: Annotated[int, Meta(ge=1, le=2**30)] = 4_096
    """Disk space for blobs, MiB; above 90 % of it none are fetched from peers."""
    welcome: Annotated[int, Meta(ge=0, le=2**53 - 1)] = 0
    """Credits that this node transfers to each newcomer that connects, at most one in ten seconds; 0: none."""
    work: str = ""
    """A policy file: also train and evaluate jobs; empty: do not."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level that is logged."""
    log_json: bool = False
    """Log one JSON object a line instead of text."""


def _explain(text: str) -> str:
    """Write what is wrong with a setting: which one it is, and what it may be."""
    what, mark, path = text.replace(f"Expected `str` matching regex {_HOST_PORT!r}", "Expected HOST:PORT").rpartition(
        " - at `$."
    )
    if not mark:
        return f"a setting is wrong: {text}"
    name = path.rstrip("`")
    choices = getattr(get_type_hints(Settings).get(name), "__args__", ()) if what.startswith("Invalid enum") else ()
    allowed = f"; it is one of {', '.join(map(str, choices))}" if choices else ""
    return f"the setting {name} is wrong: {what[:1].lower()}{what[1:]}{allowed}"


def default_data_dir(environ: Mapping[str, str] | None = None) -> Path:
    """Return the data folder for who names none: CRDTCHAIN_DATA, else the platform's place for data of programs."""
    env = os.environ if environ is None else environ
    if env.get("CRDTCHAIN_DATA"):
        return Path(env["CRDTCHAIN_DATA"])
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "crdtchain"
    base = env.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / "crdtchain"


def load_settings(
    folder: Path, flags: Mapping[str, object] | None = None, environ: Mapping[str, str] | None = None
) -> Settings:
    """Put the settings of a data folder together; flags that are None were not given.

    Raises:
        UsageError: an unknown key, or a value that is not allowed.
    """
    values: dict[str, object] = {}
    path = folder / CONFIG_FILE
    if path.exists():
        values.update(_check_names(load_toml(path, "settings file"), str(path)))
    values.update(_read_environment(os.environ if environ is None else environ))
    if values.get("force_offline"):
        # A danger that is accepted once must not become a habit.
        raise UsageError("force_offline is no lasting setting: give --force-offline for the one start that needs it")
    values.update(_check_names({name: value for name, value in (flags or {}).items() if value is not None}, "a flag"))
    try:
        settings = msgspec.convert(values, Settings)
    except msgspec.ValidationError as error:
        raise UsageError(_explain(str(error))) from None
    for url in (*settings.peers, *filter(None, (settings.public_url,))):
        parse_peer_url(url)
    return settings


def _check_names(values: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    for name in values:
        if name not in Settings.__struct_fields__:
            nearest = find_nearest(name, Settings.__struct_fields__)
            raise UsageError(f"{where} names an unknown setting {name!r}; {nearest}")
    return values


def _read_environment(environ: Mapping[str, str]) -> dict[str, object]:
    """Return the settings that the environment gives; lists are separated by commas."""
    values: dict[str, object] = {}
    fields = {field.name: field for field in msgspec.structs.fields(Settings)}
    for name, text in environ.items():
        key = name.removeprefix(ENV_PREFIX).lower()
        if not name.startswith(ENV_PREFIX) or name in _OTHER_VARIABLES:
            continue
        if key not in fields:
            raise UsageError(f"the environment names an unknown setting {name}; {find_nearest(key, fields)}")
        values[key] = _parse_text(name, text, fields[key].default)
    return values


_OTHER_VARIABLES: Final = frozenset({"CRDTCHAIN_DATA", "CRDTCHAIN_PASSPHRASE", "CRDTCHAIN_DEBUG"})
"""Variables of ours that are no settings."""
_BOOLEANS: Final = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


def _parse_text(name: str, text: str, default: object) -> object:
    """Read a text as what the default's type says."""
    if isinstance(default, bool):
        if text.lower() not in _BOOLEANS:
            raise UsageError(f"{name} is {text!r}; it must be true or false")
        return _BOOLEANS[text.lower()]
    if isinstance(default, int):
        try:
            return int(text)
        except ValueError:
            raise UsageError(f"{name} is {text!r}; it must be a whole number") from None
    if isinstance(default, tuple):
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def split_host_port(text: str, what: str) -> tuple[str, int]:
    """Read HOST:PORT; brackets around an IPv6 address are taken off.

    Raises:
        UsageError: it is not that.
    """
    host, _, port = text.rpartition(":")
    if ":" not in text or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise UsageError(f"{what} is {text!r}; it must be HOST:PORT")
    return host.removeprefix("[").removesuffix("]") or "127.0.0.1", int(port)
