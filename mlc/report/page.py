"""The HTML page of a tuning report: text and tables, the curve inline, nothing from elsewhere.

Names in a model and messages of tools are untrusted: every text passes `_text`, and the page's
policy forbids scripts and the network to browsers.
"""

from __future__ import annotations

import html
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from mlc import __version__, target, tvm_env
from mlc.errors import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mlc.options import TuneOptions

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>$title</title>
<style>
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
.verdict { font-size: 1.25rem; margin: .3rem 0 1rem; }
.note { opacity: .75; font-size: .9rem; max-width: 50rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: 0; }
dt { opacity: .75; }
dd { margin: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #8884; }
th { font-weight: 600; vertical-align: bottom; }
td { font-variant-numeric: tabular-nums; }
th.l, td.l { text-align: left; }
svg { max-width: 100%; height: auto; }
</style>
</head>
<body>
<h1>$title</h1>
<p class="verdict">$verdict</p>
<dl>
$facts
</dl>
<h2>Expected latency of the tunable part</h2>
$curve
<p class="note">After each batch of trials: what a run of the model spends in the kernels that can be
tuned, from the best measurement of each, by task. A lowest measurement flatters; the table below and
the line above are from timings taken again, side by side with the default.</p>
<h2>Tasks</h2>
$tasks
<p class="note">A task is a subgraph that can be tuned; before and after are microseconds per call, the
default config and the chosen one. Trials include those of earlier runs, failures are this run's.
Of peak: the share of the GFLOP/s that fp32 code reaches on this machine at most$peak.</p>
$failures
$trust
</body>
</html>
""")


def render(found: Mapping[str, Any], options: TuneOptions, svg: str) -> str:
    """Return the page of a run.

    Args:
        found: what `mlc.tune.run.tune_model` returned.
        options: what it was asked.
        svg: the curve as an SVG element, put in as it is.

    Raises:
        TargetError: the target is unknown.
    """
    peak = found.get("peak_gflops")
    return _PAGE.substitute(
        title=_text(f"Tuning of {Path(str(options.model)).name}"),
        verdict=_text(_verdict(found.get("model"), found.get("not_compared") or "")),
        facts="\n".join(
            f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>"
            for name, value in _facts(found, options)
        ),
        curve=svg,
        tasks=_tasks(found["tasks"], peak),
        peak=f", {peak:.0f}" if peak else "",
        failures=_failures(found["failures"]),
        trust=_trust(found.get("trust") or {}),
    )


def _verdict(model: Mapping[str, float] | None, why: str) -> str:
    if why:
        return f"The tuned model is used, but was not compared end to end: {why}."
    if model is None:
        return "Nothing new was chosen in this run, so the model was not timed again."
    return (
        f"{model['before'] * 1e3:.2f} ms before, {model['after'] * 1e3:.2f} ms after: "
        f"{model['ratio']:.2f} times as fast ({model['low']:.2f} to {model['high']:.2f})"
    )


def _facts(found: Mapping[str, Any], options: TuneOptions) -> list[tuple[str, str]]:
    budget = "" if options.budget is None else f", budget {options.budget:.0f} s"
    asked = f"(asked: {options.trials}{budget})"
    return [
        ("model", str(options.model)),
        ("target", target.resolve(options.target).tvm),
        ("device", found["device"]),
        ("versions", f"mlc {__version__}, TVM {tvm_env.VERSION}"),
        ("search", f"{options.tuner}, seed {options.seed}, level -O{options.opt_level}"),
        ("trials", f"{found['measured']} measured now, {found['known']} known before {asked}"),
        ("time", f"{found['seconds']:.0f} s"),
        ("records", f"{found['logs']}, run {found['run']}"),
    ]


def _tasks(tasks: Iterable[Mapping[str, Any]], peak: float | None) -> str:
    rows = []
    for task in tasks:
        before, after = task["untuned"], task["best"]
        speed = task["flops"] / after / 1e9 if after else None
        rows.append(
            (
                task["id"], task["shapes"], task["calls"], f"{task['share']:.1%}", task["trials"],
                task.get("failed") or "", _us(before), _us(after),
                f"{before / after:.2f}x" if before and after else "",
                f"{speed:.1f}" if speed else "",
                f"{speed / peak:.0%}" if speed and peak else "", task["checked"],
            )
        )  # fmt: skip
    head = (
        "task", "shapes", "calls", "share of the untuned model", "trials", "failed", "before",
        "after", "gain", "GFLOP/s", "of peak", "output",
    )  # fmt: skip
    return _table(head, rows, left=("task", "shapes", "output"))


def _failures(failures: Mapping[str, int]) -> str:
    if not failures:
        return ""
    rows = sorted(failures.items(), key=lambda item: -item[1])
    head = "<h2>Candidates that failed</h2>\n"
    note = '\n<p class="note"><code>mlc logs show</code> has their messages.</p>'
    return head + _table(("reason", "candidates"), rows, left=("reason",)) + note


def _trust(templates: Mapping[str, Mapping[str, Any] | None]) -> str:
    if not templates:
        return ""
    rows: list[Sequence[object]] = []
    for template, trust in sorted(templates.items()):
        if trust is None:
            rows.append((template, "too few", "", "", ""))
            continue
        rows.append(
            (
                template, trust["records"], f"{trust['rank_correlation']:.2f}",
                f"{trust['top_k_recall']:.0%}", f"{trust['regret']:.0%}",
            )
        )  # fmt: skip
    head = ("template", "records", "rank correlation", "found of the fastest fifth", "regret")
    return (
        "<h2>How far the cost model can be trusted</h2>\n"
        + _table(head, rows, left=("template",))
        + '\n<p class="note">By cross validation on what was measured. A model that guesses has rank '
        "correlation 0 and finds 20% of the fastest fifth; regret is how much longer than the best "
        "config the one takes that the model likes best.</p>"
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[object]], *, left: Sequence[str]) -> str:
    marks = [' class="l"' if name in left else "" for name in head]

    def line(tag: str, cells: Sequence[object]) -> str:
        filled = zip(marks, cells, strict=True)
        return "<tr>" + "".join(f"<{tag}{m}>{_text(str(c))}</{tag}>" for m, c in filled) + "</tr>\n"

    body = "".join(line("td", row) for row in rows)
    return (
        f'<div class="wide"><table>\n<thead>{line("th", head)}</thead>\n'
        f"<tbody>{body}</tbody>\n</table></div>"
    )


def _us(seconds: float | None) -> str:
    return f"{seconds * 1e6:.1f}" if seconds else ""


def _text(text: str) -> str:
    return html.escape(printable(text))
