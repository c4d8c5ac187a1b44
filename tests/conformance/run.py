"""`python -m tests.conformance.run`: onnx's backend suite through mlc, compared with a checked list.

    make conformance                                      all of it
    python -m tests.conformance.run --only 'resize|pad'   what matches
    python -m tests.conformance.run --engine onnxruntime  the same tests by ONNX Runtime
    python -m tests.conformance.run --update              write the list of known failures anew

Prints a table per operator and opset and a summary. Exit code 1 when a test fails that
`known_failures.toml` does not list, or a listed one passes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from tests.conformance.cases import FAMILIES, Case, load
from tests.conformance.execute import ENGINES, Outcome, run_all

KNOWN = Path(__file__).with_name("known_failures.toml")
LIMIT_S = 180.0


def main() -> int:
    """Run what the command line asks for; return the exit code."""
    options = _options()
    pattern = re.compile(options.only)
    cases = [c for c in load(options.family or FAMILIES) if pattern.search(c.name)]
    outcomes = {}
    started = time.perf_counter()
    todo = [c for c in cases if options.all or not c.uncounted]
    for position, outcome in enumerate(
        run_all(todo, options.engine, jobs=options.jobs, limit=LIMIT_S, opt_level=options.opt_level)
    ):
        outcomes[outcome.name] = outcome
        if position % 100 == 99 and not options.json:
            spent = time.perf_counter() - started
            sys.stderr.write(f"{position + 1}/{len(todo)} tests, {spent:.0f} s\n")
    facts = [{**_facts(c), **asdict(outcomes[c.name])} for c in todo]
    report = f"{table(cases, outcomes)}\n\n{summary(cases, outcomes)}"
    sys.stdout.write((json.dumps(facts) if options.json else report) + "\n")
    if options.engine != "mlc":
        return 0
    known = read_known()
    if options.update:
        KNOWN.write_text(listing(todo, outcomes, known))
        return 0
    surprises = compare(todo, outcomes, known)
    sys.stderr.write("\n".join(surprises or ["as the list of known failures has it"]) + "\n")
    return 1 if surprises else 0


def read_known() -> dict[str, str]:
    """Return the tests that are known to fail, with the reason of each."""
    groups = tomllib.loads(KNOWN.read_text())["failures"] if KNOWN.exists() else []
    return {name: group["reason"] for group in groups for name in group["tests"]}


def compare(
    cases: Sequence[Case], outcomes: dict[str, Outcome], known: dict[str, str]
) -> list[str]:
    """Return a line for each test that does not end as the list says."""
    lines = []
    for case in cases:
        outcome = outcomes[case.name]
        if outcome.status == "passed" and case.name in known:
            lines.append(f"{case.name} passes: take it off the list")
        elif outcome.status != "passed" and case.name not in known and not case.uncounted:
            lines.append(f"{case.name} {outcome.status}: {outcome.reason}")
    return lines


def listing(cases: Sequence[Case], outcomes: dict[str, Outcome], known: dict[str, str]) -> str:
    """Return the text of the list: failures by reason, what is known already under its own."""
    groups: dict[str, list[str]] = defaultdict(list)
    for case in cases:
        outcome = outcomes[case.name]
        if outcome.status != "passed" and not case.uncounted:
            reason = known.get(case.name, f"{outcome.status}: {outcome.reason}"[:150])
            groups[reason].append(case.name)
    lines = ["# Tests of onnx's backend suite that fail, by reason; checked by `make conformance`."]
    for reason, names in sorted(groups.items()):
        lines += ["", "[[failures]]", f"reason = {json.dumps(reason)}", "tests = ["]
        lines += [f'    "{name}",' for name in names]
        lines.append("]")
    return "\n".join(lines) + "\n"


def table(cases: Sequence[Case], outcomes: dict[str, Outcome]) -> str:
    """Return passed/counted per operator (rows) and opset; a * marks operands that were bound."""
    rows: dict[str, dict[int, list[bool]]] = defaultdict(lambda: defaultdict(list))
    bound: set[str] = set()
    for case in cases:
        if not case.uncounted and case.name in outcomes:
            rows[case.operator][case.opset].append(outcomes[case.name].status == "passed")
            bound |= {case.operator} if case.bound else set()
    lines = []
    for operator, opsets in sorted(rows.items()):
        cells = [f"opset {o}: {sum(done)}/{len(done)}" for o, done in sorted(opsets.items())]
        lines.append(f"{operator + '*' * (operator in bound):30} " + ", ".join(cells))
    return "\n".join([*lines, "* operands that only shape the computation are bound (cases.BOUND)"])


def summary(cases: Sequence[Case], outcomes: dict[str, Outcome]) -> str:
    """Return the counts per family, and how many tests are not counted for which type."""
    lines = []
    for family in (*FAMILIES, "all"):
        mine = [c for c in cases if family in (c.family, "all") and not c.uncounted]
        ended = Counter(outcomes[c.name].status for c in mine)
        rest = ", ".join(f"{n} {s}" for s, n in sorted(ended.items()) if s != "passed")
        share = 100 * ended["passed"] / max(1, len(mine))
        lines.append(f"{family:20} {ended['passed']}/{len(mine)} ({share:.1f} %)  {rest}")
    apart = Counter(c.uncounted for c in cases if c.uncounted)
    counts = ", ".join(f"{n} {what}" for what, n in apart.most_common())
    return "\n".join([*lines, f"not counted: {counts or 'none'}"])


def _facts(case: Case) -> dict[str, object]:
    return {k: getattr(case, k) for k in ("family", "operator", "opset", "uncounted")}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", metavar="PATTERN", help="names that match")
    parser.add_argument("--family", action="append", choices=FAMILIES)
    parser.add_argument("--engine", choices=sorted(ENGINES), default="mlc")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--opt-level", type=int, default=1, choices=(0, 1, 2, 3))
    parser.add_argument("--all", action="store_true", help="also types that TVM has not")
    parser.add_argument("--json", action="store_true", help="print outcomes as JSON")
    parser.add_argument("--update", action="store_true", help="write known_failures.toml")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
