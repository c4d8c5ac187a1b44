"""What the results say, as rows of a table: on a terminal, or in Markdown for the README."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.tune.curves import reached

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

TIMES_AS_FAST = 3.0  # part a's aim
SHARE = 0.5  # of the trials: the aim of b and c


class Row(NamedTuple):
    """What was measured, what came out, what was aimed at, and whether it was reached."""

    what: str
    found: str
    aim: str = ""
    met: str = ""


def rows(results: dict[str, Any]) -> list[Row]:
    """Return the table of all parts that were measured."""
    makers = {"ab": _against, "c": _transfer, "d": _warm, "e": _killed}
    return [row for part, make in makers.items() if results.get(part) for row in make(results)]


def markdown(results: dict[str, Any]) -> str:
    """Return the table in Markdown."""
    lines = ["| | measured | aim | met |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in rows(results)]
    return "\n".join([*lines, "", caption(results)])


def caption(results: dict[str, Any]) -> str:
    """Return where and how it was measured."""
    facts, options = results["setup"], results["options"]
    watch = "AutoTVM's builder and runner" if options["stock"] else "mlc's measurer"
    fits = [seed["fits"] for seed in results.get("ab", ()) if "b" in seed]
    text = (
        f"{_name(facts['model'])}, {facts['trials']} trials, seeds: {options['seeds']}, "
        f"{facts['cpu']}, {facts['threads']} threads. Ranges are over seeds."
    )
    if fits:
        text += (
            f" Equal split: AutoTVM's XGBTuner (regression: its rank loss raises with current "
            f"xgboost), as many trials for each task, timed by {watch}; with {options['plan']} "
            f"trials before a model is fitted it fitted {sum(fits)} models in {len(fits)} runs. "
            "It takes the lowest cost, as AutoTVM does; mlc keeps the default where that is faster."
        )
    if not all(part["reliable"] for name in ("ab", "c") for part in results.get(name) or ()):
        text += " Other programs took the cores: NOT TO BE QUOTED."
    return text


def trials_to_reach(seed: dict[str, Any]) -> int | None:
    """Return the first checkpoint of a seed of b that is as fast as the equal split's end."""
    points = seed["b"]["checkpoints"]
    return next((point["trials"] for point in points if point["ratio"] >= 1), None)


def _against(results: dict[str, Any]) -> list[Row]:
    seeds = results["ab"]
    found = [seed["a"]["ratio"] for seed in seeds]
    table = [
        Row("latency, untuned", _ms(seed["seconds"]["untuned"] for seed in seeds)),
        Row("latency, `mlc tune`", _ms(seed["seconds"]["ours"] for seed in seeds)),
        Row("a: untuned / tuned", _span(found, "{:.2f}"), f">= {TIMES_AS_FAST:g}",
            _met(value >= TIMES_AS_FAST for value in found)),
    ]  # fmt: skip
    if "b" not in seeds[0]:
        return table
    total = results["setup"]["trials"]
    reach = [trials_to_reach(seed) for seed in seeds]
    records = [reached(seed["curve"]["ours"], seed["curve"]["equal"][-1][1]) for seed in seeds]
    return [
        *table,
        Row("latency, equal split", _ms(seed["seconds"]["equal"] for seed in seeds)),
        Row("b: equal split / `mlc tune`, all trials",
            _span([seed["b"]["final"]["ratio"] for seed in seeds], "{:.2f}")),
        *_checkpoints(seeds),
        Row("b: our trials to reach the equal split's end", _counts(reach),
            f"<= {SHARE * total:g}", _met(n is not None and n <= SHARE * total for n in reach)),
        Row("the same by the records alone", _counts(records)),
        Row("seconds of a whole `mlc tune`", _span([s["search_seconds"] for s in seeds], "{:.0f}")),
    ]  # fmt: skip


def _checkpoints(seeds: Sequence[dict[str, Any]]) -> list[Row]:
    """Return a row for each number of trials that every seed reached."""
    table: dict[int, list[float]] = {}
    for seed in seeds:
        for point in seed["b"]["checkpoints"]:
            table.setdefault(point["trials"], []).append(point["ratio"])
    return [
        Row(f"b: equal split's end / ours after {trials}", _span(found, "{:.2f}"))
        for trials, found in sorted(table.items())
    ]


def _transfer(results: dict[str, Any]) -> list[Row]:
    seeds, second = results["c"], _name(results["options"]["second"])
    on, off = ([seed["reach"][name] for seed in seeds] for name in ("on", "off"))
    shares = [n / m for n, m in zip(on, off, strict=True) if n is not None and m]
    confirmed = [_confirmed(seed) for seed in seeds]
    total = results["setup"]["trials"]
    return [
        Row(f"c: {second}, trials to within 5 % with transfer", _counts(on, total)),
        Row("the same without", _counts(off, total)),
        Row("c: share of the trials", _span(shares, "{:.2f}") if shares else "never",
            f"<= {SHARE:g}", _met(_share_met(n, m) for n, m in zip(on, off, strict=True))),
        Row("artifact there / best artifact",
            _span([value for value in confirmed if value], "{:.2f}"), "<= 1.05",
            _met(value is not None and value <= 1.05 for value in confirmed)),
    ]  # fmt: skip


def _share_met(on: int | None, off: int | None) -> bool:
    """Whether transfer took at most half of the trials; never arriving without it counts."""
    return on is not None and (off is None or on <= SHARE * off)


def _confirmed(seed: dict[str, Any]) -> float | None:
    """Return the time of the artifact at the point reached by records over that of the best."""
    mark = f"on@{seed['reach']['on']}"
    return 1 / seed["within"][mark]["ratio"] if mark in seed["within"] else None


def _warm(results: dict[str, Any]) -> list[Row]:
    found = results["d"]
    limit = found["limit"] + found["imports"]
    stages = ", ".join(f"{name} {seconds:.2f}" for name, seconds in found["stages"])
    return [
        Row("d: the same again, measured", str(found["measured"]), "0",
            _met([found["measured"] == 0])),
        Row("d: seconds of the whole process", f"{found['wall']:.2f}", f"<= {limit:.2f}",
            _met([found["wall"] <= limit])),
        Row("of that in the run", f"{found['run']:.2f} ({stages})"),
        Row("imports alone; `mlc tune --help`", f"{found['imports']:.2f}; {found['help']:.2f}"),
    ]  # fmt: skip


def _killed(results: dict[str, Any]) -> list[Row]:
    found = results["e"]
    return [Row("e: killed at random moments, nothing lost or measured twice",
                f"{found['kills']} times, {found['seconds']:.0f} s", "", "yes")]  # fmt: skip


def _name(model: str) -> str:
    return Path(model).stem


def _met(verdicts: Iterable[bool]) -> str:
    """Return yes or no when all seeds agree, else how many of them met the aim."""
    found = list(verdicts)
    if all(found):
        return "yes"
    return f"{sum(found)} of {len(found)}" if any(found) else "no"


def _ms(seconds: Iterable[float]) -> str:
    return _span([value * 1e3 for value in seconds], "{:.2f}") + " ms"


def _span(values: Sequence[float], form: str) -> str:
    """Return the median and, of several, the lowest and highest."""
    if not values:
        return "never"
    text = form.format(statistics.median(values))
    if len(values) == 1:
        return text
    return f"{text} ({form.format(min(values))} to {form.format(max(values))})"


def _counts(values: Sequence[int | None], total: int | None = None) -> str:
    never = "never" if total is None else f"more than {total}"
    return ", ".join(never if value is None else str(value) for value in values)
