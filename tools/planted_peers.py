"""Bugs to plant around connections, blobs and files of ops: (name, file, old text, new text, tests)."""

from __future__ import annotations

UNIT = "tests/unit/node"
ADMISSION_TESTS = f"{UNIT}/test_admission.py"
GATE_TESTS = f"{UNIT}/test_gate.py"
SCORE_TESTS = f"{UNIT}/test_scores.py"
GUARD_TESTS = f"{UNIT}/test_guards.py"
BOOK_TESTS = f"{UNIT}/test_book.py"
STICK_TESTS = f"{UNIT}/test_stick.py"
PARTIAL_TESTS = f"{UNIT}/test_partial.py"
ALLOW_TESTS = f"{UNIT}/test_peering.py"
BLOB_RULES = f"{UNIT}/test_blob_rules.py"
FETCHES = "tests/integration/test_blob_fetch.py"
LIES = "tests/integration/test_blob_lies.py"
KEEPING = "tests/integration/test_blob_keeping.py"
LINKS = "tests/integration/test_links.py"
FAULTS = "tests/integration/test_sync_faults.py"
CONNECTIONS = "tests/integration/test_connections.py"
DIALS = "tests/integration/test_dialer.py"
RUNTIMES = "tests/integration/test_runtime.py"

ADMISSION = "node/admission.py"
GATE = "node/gate.py"
SCORES = "node/scores.py"
GUARDS = "node/guards.py"
HOLD = "node/hold.py"
SKEW = "node/skew.py"
PARTIAL = "node/partial.py"
BOOK = "node/book.py"
PLACE = "node/place.py"
NODE = "node/node.py"
PEERS = "node/peers.py"
LINK = "node/link.py"
STORE = "node/blobs/store.py"
FILES = "node/blobs/files.py"
ARCHIVE = "node/cli/archive.py"
IMPORTING = "node/cli/importing.py"

PLANTED: list[tuple[str, str, str, str, str]] = [
    # Connections.
    (
        "proof-unchecked",
        LINK,
        "if not is_accepted(Author(output.key), output.message, output.signature):",
        "if False:",
        f"{LINKS} -k another_key",
    ),
    (
        "handshake-without-end",
        LINK,
        "        if not self.is_ready:\n            raise PeerError",
        "        if False:\n            raise PeerError",
        f"{LINKS} -k in_time",
    ),
    ("acknowledged-unstored", LINK, "        await stored\n", "        pass\n", f"{LINKS} -k acknowledged"),
    (
        "two-connections-of-one-node",
        PEERS,
        "                other.drop(ALREADY_CONNECTED)\n",
        "                pass\n",
        f"{FAULTS} -k newer_stays",
    ),
    (
        "two-connections-both-ways",
        PEERS,
        "if link.is_dialler != is_ours and other.is_dialler == is_ours:",
        "if False:",
        f"{LINKS} -k lower_key",
    ),
    (
        "silent-peer-waited-for",
        PEERS,
        "            self._asking = None\n\n    def _pause_s",
        "\n    def _pause_s",
        f"{LINKS} -k silent",
    ),
    ("announced-not-asked-for", PEERS, "if prefix in missing and links:", "if False:", f"{LINKS} -k announced"),
    (
        "copies-not-declined",
        PEERS,
        "            link.act(lambda: link.session.prune(fresh))\n",
        "            pass\n",
        f"{LINKS} -k announced",
    ),
    (
        "allowed-inbound-alone",
        NODE,
        "        self.allow.check(link.node)\n",
        "        if not link.is_dialler:\n            self.allow.check(link.node)\n",
        f"{LINKS} -k private",
    ),
    (
        "forbidden-stay-connected",
        NODE,
        "if not self.allow.is_allowed(link.node):",
        "if False:",
        f"{CONNECTIONS} -k private",
    ),
    (
        "allowed-when-list-is-gone",
        "node/allow.py",
        "if keys is None and self._keys is not None:",
        "if False:",
        ALLOW_TESTS,
    ),
    (
        "take-cut-short",
        "node/runtime.py",
        "        task = asyncio.create_task(self._take(ops, source))\n",
        "        return await self._take(ops, source)\n",
        f"{RUNTIMES} -k one_op_for_each_seq",
    ),
    (
        "place-unchecked",
        NODE,
        "reason = await self.place.check(0 if tip is None else tip.seq + 1)",
        'reason = ""',
        f"{CONNECTIONS} -k copied",
    ),
    ("place-files-anew", PLACE, "elif file != note.file:", "elif False:", f"{UNIT}/test_place.py"),
    ("place-signed-more", PLACE, "and int(signed[:16]) > own_count:", "and False:", f"{UNIT}/test_place.py"),
    (
        "redirect-followed",
        "node/dialing.py",
        "    trace.on_request_redirect.append(_refuse_redirect)\n",
        "",
        f"{DIALS} -k elsewhere",
    ),
    (
        "name-leads-anywhere",
        "node/dialing.py",
        "return address is not None and self._allows(address)",
        "return True",
        f"{DIALS} -k name_leads",
    ),
    (
        "told-what-is-nearer",
        "node/addresses.py",
        "if address is not None and find_reach(address) > reach:",
        "if False:",
        f"{UNIT}/test_addresses.py",
    ),
    (
        "told-numbers-as-names",
        "node/addresses.py",
        "return not _NUMERIC.fullmatch(labels[-1]) and not",
        "return not",
        f"{UNIT}/test_addresses.py",
    ),
    (
        "told-tried-for-ever",
        BOOK,
        "_TRIES_MAX: Final[dict[Source, int]] = {Source.TOLD: 5, ",
        "_TRIES_MAX: Final[dict[Source, int]] = {",
        BOOK_TESTS,
    ),
    ("told-machine-hammered", BOOK, " and _machine(row.url) not in self._tries\n", "\n", BOOK_TESTS),
    ("told-fill-the-book", BOOK, "if len(same) >= TOLD_MAX:", "if False:", BOOK_TESTS),
    ("told-on-unreached", BOOK, "if 0 <= now_ms - row.success_ms < RECENT_MS and row.node", "if row.node", BOOK_TESTS),
    (
        "forwarded-by-anybody",
        "node/proxy.py",
        "if remote is None or not self.is_trusted(remote):\n            return remote\n        lines",
        "if remote is None:\n            return remote\n        lines",
        "tests/integration/test_behind_proxy.py -k only_trusted",
    ),
    (
        "announced-by-another-network",
        "node/discovery.py",
        "if network != self._network.encode() or node",
        "if node",
        "tests/integration/test_discovery.py -k read_with_care",
    ),
    (
        "certificate-renewed-untried",
        "node/tls.py",
        "            check_certificate(self._make(), self._certificate)\n            self._load",
        "            self._load",
        f"{UNIT}/test_tls.py",
    ),
    # Limits.
    (
        "pull-wait-ignored",
        PEERS,
        "if is_due and not self._may_pull(link.name, is_missed):",
        "if False:",
        f"{LINKS} -k allowance",
    ),
    (
        "live-unadmitted",
        LINK,
        "taken = self._owner.admit(ops, self)",
        "taken = ops",
        f"{LINKS} -k allowance",
    ),
    (
        "deferred-not-asked-for",
        ADMISSION,
        "        self._note_delay(source)\n\n    def release",
        "\n    def release",
        ADMISSION_TESTS,
    ),
    (
        "deferral-for-ever",
        ADMISSION,
        "level_s = min(most_s, 2 * delay.level_s)",
        "level_s = 2 * delay.level_s",
        ADMISSION_TESTS,
    ),
    (
        "needed-deferred",
        ADMISSION,
        "if fates[op] and (op in linked or self._is_needed(op)):",
        "if False:",
        ADMISSION_TESTS,
    ),
    (
        "allowance-charged-twice",
        ADMISSION,
        "if op.id not in self._charged and op.id not in self.hold:",
        "if True:",
        ADMISSION_TESTS,
    ),
    (
        "newcomers-each-an-allowance",
        ADMISSION,
        "standing, is_taken = Standing.NEWCOMER, self._newcomers.take_if(1)",
        "standing, is_taken = Standing.NEWCOMER, True",
        ADMISSION_TESTS,
    ),
    ("far-ahead-taken", ADMISSION, "if ahead_ms > limits.AHEAD_HOLD_MS:", "if False:", ADMISSION_TESTS),
    (
        "held-never-released",
        GUARDS,
        "in self.admission.release(self._runtime.now_ms()):",
        "in list[tuple[str, list[SignedOp]]]():",
        GUARD_TESTS,
    ),
    ("held-of-the-lightest", HOLD, "max(self._bytes, key=", "min(self._bytes, key=", ADMISSION_TESTS),
    (
        "gate-counts-loopback",
        SCORES,
        "if found is None or find_reach(found) is Reach.LOOPBACK:",
        "if found is None:",
        GATE_TESTS,
    ),
    ("gate-never-evicts", GATE, "        if not idle:\n", "        if True:\n", GATE_TESTS),
    (
        "gate-evicts-links",
        GATE,
        "if not visit.is_link and visit.since_s <= latest_s",
        "if visit.since_s <= latest_s",
        GATE_TESTS,
    ),
    ("gate-keeps-the-ended", GATE, "        self._entries.discard(entry)\n", "        pass\n", GATE_TESTS),
    ("gate-half-open", GATE, '"half_open" if self.half_open_count >= limits.HALF_OPEN_MAX else ""', '""', GATE_TESTS),
    ("gate-known-liar", GATE, 'if node is not None and self.direction != "configured":', "if False:", GATE_TESTS),
    (
        "score-not-saved",
        GUARDS,
        "await penalties.save(self.scores.dump(self._runtime.now_ms()))",
        "self.scores.dump(self._runtime.now_ms())",
        GUARD_TESTS,
    ),
    (
        "score-not-loaded",
        NODE,
        "                node.guards.scores.load(await node._penalties.load())\n",
        "",
        "tests/integration/test_limits.py -k over_a_restart",
    ),
    (
        "score-without-decay",
        SCORES,
        "return self.count * math.exp2(",
        "return self.count * min(1.0, 1 + 0 *",
        SCORE_TESTS,
    ),
    (
        "score-of-one-address-of-many",
        "node/addresses.py",
        "return str(inner or ipaddress.ip_network((address, 64), strict=False))",
        "return str(inner or address)",
        SCORE_TESTS,
    ),
    ("quota-not-kept", GUARDS, "if ops and self.room.is_scarce():", "if False:", GUARD_TESTS),
    ("clock-of-strangers", SKEW, "if len(chosen) >= limits.SKEW_PEERS_MIN:", "if False:", f"{UNIT}/test_skew.py"),
    (
        "aside-forgotten",
        PARTIAL,
        "for one in [*self._recall(list_links(signed.op)), signed]:",
        "for one in [signed]:",
        PARTIAL_TESTS,
    ),
    (
        "aside-bound",
        PARTIAL,
        "while len(self._aside) > ASIDE_OPS_MAX or self._aside_bytes > ASIDE_BYTES_MAX:",
        "while False:",
        PARTIAL_TESTS,
    ),
    ("new-scopes-without-end", PARTIAL, "and not self._new_scopes.take_if(1):", "and False:", PARTIAL_TESTS),
    # Blobs.
    (
        "chunk-unverified",
        FILES,
        "if len(data) != size or compute_chunk_id(data) != self.layout.chunks[index]:",
        "if len(data) != size:",
        LIES,
    ),
    ("small-blob-unverified", STORE, "else compute_chunk_id(data) == blob):", "else True):", LIES),
    (
        "chunk-list-unverified",
        STORE,
        "if not (is_list_of(blob, data) if is_list",
        "if not (True if is_list",
        f"{FETCHES} -k another_list",
    ),
    (
        "part-trusted",
        FILES,
        "if compute_chunk_id(os.pread(self._descriptor, size, start)) == chunk:",
        "if True:",
        f"{FETCHES} -k 'before_a_break'",
    ),
    (
        "part-forgotten",
        STORE,
        "                await run_file_work(part.check)\n",
        "                pass\n",
        f"{FETCHES} -k 'before_a_break'",
    ),
    ("liar-asked-again", "node/blobs/fetching.py", "            self.liars.add(source.name)\n", "", LIES),
    ("asker-asked", STORE, "if link.name not in self._askers.get(blob, ()):", "if True:", f"{FETCHES} -k who_asks"),
    (
        "unnamed-blob-looked-for",
        NODE,
        "if not get.hops or not self._is_named(get.cid):",
        "if not get.hops:",
        f"{LINKS} -k names",
    ),
    (
        "needed-blob-evicted",
        "node/blobs/keeping.py",
        "item.state == FETCHED and blob not in needed)",
        "item.state == FETCHED)",
        BLOB_RULES,
    ),
    (
        "needed-blob-unknown",
        "node/blobs/shelf.py",
        "needed = self._items.keys() if self.find_needed is None else",
        "needed = () if self.find_needed is None else",
        KEEPING,
    ),
    (
        "range-off-by-one",
        "node/server/blobs.py",
        "min(int(last) + 1, size) if last",
        "min(int(last), size) if last",
        BLOB_RULES,
    ),
    (
        "blob-port-elsewhere",
        "node/blobs/sources.py",
        "headers=headers, allow_redirects=False)",
        "headers=headers)",
        LIES,
    ),
    # Files of ops.
    (
        "export-forgets-parents",
        ARCHIVE,
        "            stack.extend(list_links(ops[op].op))\n",
        "            stack.extend(() if ops[op].op.prev is None else (ops[op].op.prev,))\n",
        f"{STICK_TESTS} -k rests",
    ),
    (
        "export-for-another-network",
        ARCHIVE,
        "    if status.network != format_cid(network):\n",
        "    if False:\n",
        STICK_TESTS,
    ),
    ("export-for-without-sample", ARCHIVE, "(*heads, *read_ids(path, status.sample))", "(*heads,)", STICK_TESTS),
    (
        "import-of-another-network",
        IMPORTING,
        "if network is not None and cid != network and is_op_block",
        "if False and is_op_block",
        STICK_TESTS,
    ),
    (
        "import-unverified",
        IMPORTING,
        "                verify_op(signed, self._ledger.params.network, sodium_verifier)\n",
        "                pass\n",
        STICK_TESTS,
    ),
    (
        "import-loses-what-came",
        IMPORTING,
        "and stays.\n            await self._store_fresh()\n",
        "and stays.\n            pass\n",
        STICK_TESTS,
    ),
    (
        "requests-without-pace",
        LINK,
        "                await self._wait(self._pace.note_work(self.session.received_kind))\n",
        "",
        f"{LINKS} -k its_pace",
    ),
    (
        "live-without-pace",
        LINK,
        "await self._wait(self._pace.note_live(output.blocks))",
        "pass",
        f"{LINKS} -k its_pace",
    ),
    # What else is remembered, told and bounded.
    (
        "allowed-by-an-empty-list",
        "node/allow.py",
        "return keys is None or key in keys",
        "return not keys or key in keys",
        ALLOW_TESTS,
    ),
    (
        "place-noted-too-late",
        PLACE,
        "        await self._save(_Note(self._machine, database, fresh, before=_read(path)))\n",
        "",
        f"{UNIT}/test_place.py",
    ),
    (
        "told-name-tried-twice",
        BOOK,
        "            if machine_of(str(address)) in self._tries:\n",
        "            if False:\n",
        BOOK_TESTS,
    ),
    (
        "book-forgets-configured",
        BOOK,
        "free = [row for row in self.rows.values() if row.source != Source.CONFIGURED]",
        "free = list(self.rows.values())",
        BOOK_TESTS,
    ),
    (
        "stopped-duty-goes-on",
        GUARDS,
        "if runtime.replica.duty is None or runtime.duty_stopped != self._skew_fault:",
        "if runtime.replica.duty is None:",
        GUARD_TESTS,
    ),
    (
        "full-disk-is-room",
        "node/room.py",
        "min(quota_bytes, used_bytes + free_bytes)",
        "quota_bytes",
        f"{UNIT}/test_room.py",
    ),
    ("own-account-not-kept", PARTIAL, "selector.join(make_selector(accounts=[own]))", "selector", PARTIAL_TESTS),
    (
        "wider-scope-untold",
        NODE,
        'link.drop("this node keeps more now")',
        "pass",
        f"{LINKS} -k keeps_more",
    ),
    (
        "small-blob-without-bound",
        "node/blobs/sources.py",
        "if found > size_max or total not in (-1, found):",
        "if total not in (-1, found):",
        LIES,
    ),
    (
        "relays-without-bound",
        STORE,
        "if blob not in self._fetching and len(self._fetching) >= RELAYS_MAX:",
        "if False:",
        LIES,
    ),
    ("quota-for-others", STORE, "(limits.QUOTA_PERCENT if for_others else 100)", "100", f"{KEEPING} -k for_others"),
]
