"""Bugs to plant in the sync core, each with the tests that must turn red: (name, file, old text, new text, tests)."""

from __future__ import annotations

TREES = "tests/property/test_sync_tree.py"
WALKS = "tests/property/test_sync_reconcile.py"
VECTORS = "tests/vectors/test_sync_vectors.py"
BOUNDS = "tests/unit/sync/test_bounds.py"
PARTIAL_TESTS = "tests/unit/node/test_partial.py"
SESSIONS = "tests/unit/sync/test_session.py"
HANDSHAKES = "tests/unit/sync/test_handshake.py"
MESSAGE_TESTS = "tests/unit/sync/test_messages.py"
SCOPE_TESTS = "tests/property/test_scopes.py"
NEEDS_TESTS = "tests/unit/test_needs.py"

TREE = "crdtchain/sync/tree.py"
REGIONS = "crdtchain/sync/regions.py"
RECONCILE = "crdtchain/sync/reconcile.py"
PULL = "crdtchain/sync/pull.py"
LIVE = "crdtchain/sync/live.py"
HOLDINGS = "crdtchain/sync/holdings.py"
MESSAGES = "crdtchain/sync/messages.py"
SESSION = "crdtchain/sync/session.py"
SCOPES = "crdtchain/scopes.py"
NEEDS = "crdtchain/needs.py"

PLANTED: list[tuple[str, str, str, str, str]] = [
    # The tree and what is said of it.
    ("tree-map", TREE, 'sha256(b"\\x01" + children.to_bytes(2, "big") + b', 'sha256(b"\\x01" + b', TREES),
    ("tree-leaf-bound", TREE, "if end - start <= LEAF_MAX:", "if end - start < LEAF_MAX:", TREES),
    ("tree-kept-value", TREE, "            parent.leaf_values[place] = None\n", "", TREES),
    ("tree-region-end", TREE, 'prefix + "g", start', 'prefix + "f", start', TREES),
    ("tree-page-start", TREE, "if self.key(number) > after)", "if self.key(number) >= after)", WALKS),
    ("items-one-encoding", REGIONS, "if count and before[shared : shared + 1] == digits[0]:", "if False:", BOUNDS),
    ("items-tags-bound", REGIONS, "if count > TAGS_MAX or (sort", "if (sort", BOUNDS),
    # Walks.
    ("walk-salt-fixed", PULL, 'sha256(self._seed + self._count.to_bytes(8, "big"))', "sha256(self._seed)", BOUNDS),
    ("tags-unsalted", RECONCILE, "self._start = sha256(salt)", "self._start = sha256()", VECTORS),
    (
        "reply-about-other-regions",
        RECONCILE,
        "if not views.keys() <= self._expected or len(views) != sum(",
        "if len(views) != sum(",
        BOUNDS,
    ),
    (
        "reply-to-nothing",
        PULL,
        "if self._walk is None or not self._waits_for_reply:",
        "if self._walk is None:",
        BOUNDS,
    ),
    ("reply-without-progress", RECONCILE, " or (self._asked and not answered):", ":", BOUNDS),
    ("walk-offers-lost", RECONCILE, "        self._offers.extend(outcome.offers)\n", "", WALKS),
    ("walk-unanswered-lost", RECONCILE, "*self._asked[answered:], ", "", WALKS),
    ("answer-size", RECONCILE, "if size > ITEMS_BYTES_MAX // 2:", "if size > 4 * ITEMS_BYTES_MAX:", WALKS),
    ("question-twice", RECONCILE, "        if region in views:\n", "        if False:\n", BOUNDS),
    ("question-size", RECONCILE, "if len(views) > VIEWS_MAX + KEY_DIGITS:", "if False:", BOUNDS),
    ("parts-in-order", RECONCILE, "    regions.sort(key=lambda region: region[0])\n", "", WALKS),
    ("get-in-order", RECONCILE, "(prefix < last or prefix.startswith(last))", "prefix.startswith(last)", SESSIONS),
    ("get-once", RECONCILE, "(prefix < last or prefix.startswith(last))", "prefix < last", SESSIONS),
    (
        "get-regions-bound",
        RECONCILE,
        "            if len(self._parts) > REGIONS_MAX:",
        "            if False:",
        BOUNDS,
    ),
    (
        "get-single-of-many",
        RECONCILE,
        "if is_only and count_region(self._tree.find(prefix)) > 2 * COMPARED_MAX:",
        "if False:",
        BOUNDS,
    ),
    (
        "found-of-another-salt",
        PULL,
        "        if salt != self._found_salt:\n",
        "        if not self._found_salt:\n",
        BOUNDS,
    ),
    ("found-bound", PULL, "if weigh(self._found) < LACKING_BYTES_MAX:", "if True:", BOUNDS),
    # Live ops.
    ("own-ops-lazy", LIVE, "if urgency is Urgency.OWN or (urgency", "if (urgency", SESSIONS),
    (
        "prune-for-all",
        LIVE,
        "return self.is_eager and author not in self._pruned",
        "return self.is_eager and not self._pruned",
        SESSIONS,
    ),
    (
        "graft-ignored",
        LIVE,
        "            self._pruned.pop(author_of(op), None)\n        return found",
        "            pass\n        return found",
        BOUNDS,
    ),
    ("live-sent-twice", LIVE, "            if op in self._known:\n", "            if False:\n", SESSIONS),
    ("credit-out", LIVE, "if size > self._credit:", "if False:", SESSIONS),
    ("credit-in", LIVE, "if self._granted < 0:", "if False:", SESSIONS),
    ("credit-grows", LIVE, "min(LIVE_CREDIT, self._credit + size)", "self._credit + size", SESSIONS),
    ("pruned-bound", LIVE, "while len(authors) > PRUNED_MAX:", "while False:", BOUNDS),
    ("announced-bound", LIVE, "while len(self._announced) > ANNOUNCED_MAX:", "while False:", BOUNDS),
    ("own-root-asked-for", HOLDINGS, "return root in self._roots", "return False", SESSIONS),
    # Messages and the handshake.
    ("auth-role", MESSAGES, ' + role + b":" + dialler.network', " + dialler.network", HANDSHAKES),
    ("auth-network", MESSAGES, "dialler.network + keys_and_nonces", "keys_and_nonces", VECTORS),
    ("auth-nonces", MESSAGES, " + dialler.nonce + listener.nonce\n", "\n", HANDSHAKES),
    ("frame-end", MESSAGES, "    if start != len(frame):\n", "    if start > len(frame):\n", MESSAGE_TESTS),
    ("frame-block-size", MESSAGES, "if not 0 < size <= limits.BLOCK_BYTES_MAX:", "if False:", MESSAGE_TESTS),
    ("hello-version", MESSAGES, "if type(version) is int and version != PROTOCOL_VERSION:", "if False:", HANDSHAKES),
    ("hello-network", SESSION, "if hello.network != self._hello.network:", "if False:", HANDSHAKES),
    ("hello-to-oneself", SESSION, "if hello.nonce == self._hello.nonce:", "if False:", HANDSHAKES),
    (
        "proof-first",
        SESSION,
        "        if not self.is_ready:\n            raise",
        "        if False:\n            raise",
        HANDSHAKES,
    ),
    # The session.
    ("no-budget", SESSION, "if self._budget < 0:", "if False:", SESSIONS),
    (
        "budget-refilled-above",
        SESSION,
        "max(self._budget, min(self._budget + size, BUDGET_BYTES))",
        "self._budget + size",
        BOUNDS,
    ),
    ("useless-pages-free", SESSION, "self._charge(size * (refused - late) // refused)", "pass", SESSIONS),
    (
        "served-without-end",
        SESSION,
        "if self.traffic.sent_ops > 2 * len(self._holdings.dag) + SERVED_SLACK:",
        "if False:",
        SESSIONS,
    ),
    ("more-beyond-credit", SESSION, "if plan.credit > PAGES_IN_FLIGHT:", "if False:", SESSIONS),
    ("pages-beyond-credit", SESSION, "        if not self._expected:\n", "        if False:\n", SESSIONS),
    ("requests-ascend", SESSION, "if get.request <= self._answered:", "if get.request < self._answered:", SESSIONS),
    (
        "one-request-at-a-time",
        SESSION,
        "        if self._plan is not None:\n            raise",
        "        if False:\n            raise",
        SESSIONS,
    ),
    ("page-size", SESSION, "if count and size > limits.PAGE_BYTES:", "if False:", SESSIONS),
    (
        "live-while-serving-lost",
        SESSION,
        "            self.live.is_behind = True\n            return []\n        scope",
        "            return []\n        scope",
        SESSIONS,
    ),
    ("both-ask-first", SESSION, "if is_first or self._mismatches > 1 else []", "", SESSIONS),
    ("found-by-question-lost", SESSION, "if found.lacking and tree.scope == self.pull_scope:", "if False:", BOUNDS),
    ("scope-of-another", SESSION, "if scope != (self.peer.scope or self._holdings.scope):", "if False:", HANDSHAKES),
    ("live-beyond-scope", SESSION, "within = ops if scope == EVERYTHING else", "within = ops if True else", HANDSHAKES),
    (
        "blob-piece-size",
        SESSION,
        "if isinstance(head, Blob) and head.size != min(",
        "if isinstance(head, Blob) and head.size > min(",
        MESSAGE_TESTS,
    ),
    ("blob-one-at-a-time", SESSION, "        if self._is_blob_due:\n", "        if False:\n", MESSAGE_TESTS),
    # Scopes and needs.
    (
        "scope-downset",
        SCOPES,
        "            stack.extend(link for link in links(op) if not flags[link])\n",
        "",
        SCOPE_TESTS,
    ),
    (
        "scope-certified",
        SCOPES,
        "return is_answered and witnesses.is_certified(matter, past.cut)",
        "return is_answered",
        SCOPE_TESTS,
    ),
    ("scope-outcome", SCOPES, " and bool(witnesses.certificates(matter, past.cut))", "", SCOPE_TESTS),
    (
        "scope-credits-given",
        SCOPES,
        "if kind is Kind.TRANSFER and self._ledger",
        "if False and self._ledger",
        SCOPE_TESTS,
    ),
    (
        "scope-one-encoding",
        SCOPES,
        "any(left >= right for row in rows",
        "any(left > right for row in rows",
        SCOPE_TESTS,
    ),
    (
        "scopes-bound",
        SCOPES,
        "            if len(self._found) >= SCOPES_MAX:\n",
        "            if False:\n",
        SCOPE_TESTS,
    ),
    ("scope-in-use-forgotten", SCOPES, "if other not in in_use), None)", "if True), None)", PARTIAL_TESTS),
    (
        "needed-until-certified",
        NEEDS,
        "return not ledger.witnesses.certificates(job, ledger.everything())",
        "return True",
        NEEDS_TESTS,
    ),
    (
        "needed-until-expired",
        NEEDS,
        "if now_ms > terms.verdict_until + params.expiry_ms + params.closing_ms:",
        "if False:",
        NEEDS_TESTS,
    ),
    (
        "needed-models",
        NEEDS,
        '            yield BlobId(bytes(body.model)), "a revealed model"\n',
        "            pass\n",
        NEEDS_TESTS,
    ),
]
