"""Bugs to plant in the core, each with the tests that must turn red: (name, file, old text, new text, tests)."""

from __future__ import annotations

SCENES = "tests/property/test_oracle_scenes.py"
HISTORIES = "tests/property/test_histories.py"
DUTY = "tests/unit/test_duty.py"
TONGUES = "tests/property/test_two_tongues.py"

WITNESS = "crdtchain/witness.py"
DEADLINES = "crdtchain/deadlines.py"
VOTES = "crdtchain/ledger/votes.py"
SETTLEMENT = "crdtchain/ledger/settlement.py"
RULES = "crdtchain/ledger/rules.py"

PLANTED: list[tuple[str, str, str, str, str]] = [
    (
        "acknowledge-on-own-chain",
        WITNESS,
        "                if dag.authors[o] == witness and is_on_chain(o, tip):\n                    break",
        "                if dag.authors[o] == witness:\n                    break",
        TONGUES,
    ),
    (
        "acknowledge-in-order",
        WITNESS,
        "            else:\n                return False\n        author",
        "            else:\n                pass\n        author",
        SCENES,
    ),
    (
        "acknowledge-equivocation",
        WITNESS,
        "        if self._has_open_equivocation(op, tip, cut):\n            return False\n",
        "",
        SCENES,
    ),
    (
        "equivocation-above-certified",
        WITNESS,
        "return max(seqs) > floor",
        "return True",
        SCENES,
    ),
    (
        "equivocation-up-to-the-op",
        WITNESS,
        "if seq <= last and self._knows_equivocation(author, seq, tip)",
        "if self._knows_equivocation(author, seq, tip)",
        SCENES,
    ),
    ("acknowledge-banned", WITNESS, "return not self.is_banned(author, cut)", "return True", SCENES),
    (
        "witness-counted-once",
        WITNESS,
        "            if witness not in found and self.sees(op):\n                found.add(witness)",
        "            if self.sees(op):\n                found.add(op)",
        HISTORIES,
    ),
    (
        "quorum",
        "crdtchain/params.py",
        "quorum=(count + faulty_max + 2) // 2",
        "quorum=(count + faulty_max + 1) // 2",
        SCENES,
    ),
    ("had-by-the-deadline", DEADLINES, "if times[mark] <= deadline:", "if times[mark] <= deadline + 1:", HISTORIES),
    (
        "others-had-it",
        DEADLINES,
        "if other != witness and other not in others and found.is_held(other, seen):",
        "if other not in others and found.is_held(other, seen):",
        TONGUES,
    ),
    (
        "enough-others-had-it",
        DEADLINES,
        "        if len(others) >= step:\n            found.add(witness, tip)",
        "        if len(others) >= step - 1:\n            found.add(witness, tip)",
        SCENES,
    ),
    (
        "last-step",
        DEADLINES,
        "last_step = deadline + self._params.closing_ms",
        "last_step = deadline + self._params.closing_ms - self._params.delta_ms",
        SCENES,
    ),
    (
        "closed-after-the-last-step",
        DEADLINES,
        "any(dag.times[tip] > closing and not found.is_held(witness, tip) for tip in cut.tips(witness))",
        "any(dag.times[tip] >= closing and not found.is_held(witness, tip) for tip in cut.tips(witness))",
        SCENES,
    ),
    (
        "conflict-on-other-chains-only",
        VOTES,
        "any(not is_on_chain(other, op) and not is_on_chain(op, other) for other in others)",
        "any(other != op for other in others)",
        HISTORIES,
    ),
    (
        "conflicts-void",
        VOTES,
        "        if self._has_rival(op, on_time):\n            return Standing.OUT\n",
        "",
        SCENES,
    ),
    (
        "open-conflict-is-undetermined",
        VOTES,
        "return Standing.UNDETERMINED if self._has_rival(op, still_open) else Standing.COUNTS",
        "return Standing.COUNTS",
        SCENES,
    ),
    ("two-thirds", VOTES, "3 * len(votes) >= 2 * total", "True", SCENES),
    (
        "witnesses-among-the-votes",
        VOTES,
        "len(witnesses) >= params.faulty_max + 1",
        "len(witnesses) >= params.faulty_max",
        SCENES,
    ),
    ("verdict-min", VOTES, "len(votes) >= params.verdict_min and ", "", TONGUES),
    ("elector-min", VOTES, "rich = self._accounts.certified_balance(author, cut)", "rich = 10**9", SCENES),
    (
        "elector-banned",
        VOTES,
        "known = self._electors[author, job] = rich and not banned",
        "known = self._electors[author, job] = rich",
        SCENES,
    ),
    (
        "pending-at-equal-loss",
        SETTLEMENT,
        "if threat is not None and threat <= loss:",
        "if threat is not None and threat < loss:",
        SCENES,
    ),
    (
        "pending-at-the-end",
        SETTLEMENT,
        "return None if pending else self._record(found)",
        "return self._record(found)",
        SCENES,
    ),
    (
        "undetermined-ticks",
        SETTLEMENT,
        "if bid != first and not same_tick and high >= other_low:",
        "if False:",
        SCENES,
    ),
    (
        "unrevealed-forfeits",
        SETTLEMENT,
        "            found.forfeits.append(author)\n            return False",
        "            return False",
        SCENES,
    ),
    (
        "refund-ends-the-search",
        SETTLEMENT,
        'if self._jobs.terms(job).on_cheat == "refund":',
        'if self._jobs.terms(job).on_cheat == "next":',
        SCENES,
    ),
    ("examined-at-most-32", "crdtchain/limits.py", "EXAMINED_MAX: Final = 32", "EXAMINED_MAX: Final = 33", SCENES),
    (
        "forfeited-stakes-stay",
        SETTLEMENT,
        "if key not in record.forfeits and self._jobs",
        "if self._jobs",
        SCENES,
    ),
    (
        "remainder-to-the-poster",
        SETTLEMENT,
        "total += purse - share * len(record.votes)",
        "total += 0",
        SCENES,
    ),
    ("balance", RULES, "    if balance < amount:", "    if balance + 1 < amount:", SCENES),
    (
        "stake-before-the-outcome",
        RULES,
        "    if context.witnesses.certificates(job, past.cut):\n",
        "    if False:\n",
        SCENES,
    ),
    (
        "certified-stake",
        RULES,
        "if not any(context.witnesses.is_certified(stake, past.cut) for stake in stakes):",
        "if not stakes:",
        SCENES,
    ),
    (
        "reveal-after-closing",
        RULES,
        "if context.witnesses.count_past(closing, past.cut) < params.quorum:",
        "if context.witnesses.count_past(closing, past.cut) < params.quorum - 1:",
        SCENES,
    ),
    (
        "bidders-do-not-vote",
        RULES,
        "    if past.cut.contains_any(context.jobs.parts.get((past.author, Kind.BID.value, job))):\n",
        "    if False:\n",
        SCENES,
    ),
    ("one-certificate", RULES, "    if len(digests) != 1:", "    if len(digests) < 1:", SCENES),
    (
        "a-witness-op-speaks-of-itself",
        RULES,
        "SPEAKING_KINDS: Final = frozenset({Kind.STAKE, Kind.BID, Kind.REVEAL, Kind.CLAIM})",
        "SPEAKING_KINDS: Final[frozenset[Kind]] = frozenset()",
        TONGUES,
    ),
    (
        "joined-heads",
        "crdtchain/crdts/heads.py",
        "if head in other._heads or not seen_by_other(head)}",
        "if True}",
        "tests/property/test_crdt_laws.py",
    ),
    ("duty-climbs", "crdtchain/duty.py", "if self._must_climb(now_ms) or ", "if ", DUTY),
    ("duty-at-the-deadline", "crdtchain/duty.py", "        if due is not None:\n", "        if False:\n", DUTY),
    ("duty-closes", "crdtchain/duty.py", " or self._must_close(now_ms)", "", DUTY),
    (
        "duty-dates-nothing-back",
        "crdtchain/duty.py",
        "if max(self._checked_ms, floor) < at <= now_ms",
        "if floor < at <= now_ms",
        DUTY,
    ),
    ("duty-expires", "crdtchain/duty.py", "            return EXPIRED\n", "            return None\n", DUTY),
]
