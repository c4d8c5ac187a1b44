"""`python -m benchmarks.suite`: see the package."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.suite import chart, models, peers, table
from benchmarks.suite.race import race
from benchmarks.suite.setup import Setup, check, prepare
from benchmarks.tune.setup import once, say
from mlc import api
from mlc.cpu import physical_cores
from mlc.errors import MissingToolError, MlcError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.suite.models import Subject

OUT = Path("build/bench")
WIDTH = 170  # of the table where the terminal's is not known


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.suite",
        description=sys.modules["benchmarks.suite"].__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = ", ".join(name for name in peers.PEERS if name != peers.OURS)
    parser.add_argument("--models", default="", help=f"some of {', '.join(models.SUBJECTS)}")
    parser.add_argument("--peers", default=",".join(peers.DEFAULT), help=f"some of {names}")
    parser.add_argument("--trials", type=int, default=Setup.trials,
                        help="of mlc tune for each model, in all; 0: untuned [%(default)s]")  # fmt: skip
    parser.add_argument("--logs", type=Path, help="where tuning records lie [OUT/logs]")
    parser.add_argument("--threads", type=int, default=physical_cores(), help="[%(default)s]")
    parser.add_argument("--target", default=Setup.target, help="as for mlc compile")
    parser.add_argument("--rounds", type=int, default=Setup.rounds,
                        help="how many blocks each entrant runs [%(default)s]")  # fmt: skip
    parser.add_argument(
        "--seconds", type=float, default=Setup.seconds, help="a block [%(default)s]"
    )
    parser.add_argument("--out", type=Path, default=OUT, help="[%(default)s]")
    parser.add_argument("--json", type=Path, help="write all results here, raw samples included")
    parser.add_argument("--chart", type=Path, help="draw a bar chart here, a PNG file")
    parser.add_argument("--markdown", action="store_true", help="print the table in Markdown")
    return parser.parse_args(words)


def check_places(asked: argparse.Namespace) -> None:
    """Raise MissingToolError or UsageError for what would stop the writing after hours of work."""
    if asked.chart and importlib.util.find_spec("matplotlib") is None:
        raise MissingToolError("--chart needs matplotlib", "pip install 'mlc-compiler[report]'")
    for path in (asked.json, asked.chart):
        if path and not path.absolute().parent.is_dir():
            raise UsageError(f"there is no folder {path.parent}", "make it, or name another file")


def measured(setup: Setup, subject: Subject) -> dict[str, Any]:
    """Return the result of a model, JSON data: the one in its folder if it was measured alike."""
    path = setup.out / subject.name / f"trials-{setup.trials}.json"
    facts = setup.facts()
    if path.exists() and json.loads(path.read_text())["facts"] != facts:
        path.unlink()

    def measure() -> dict[str, Any]:
        jobs = prepare(setup, subject)
        entrants = race(
            jobs,
            path.parent,
            setup.rounds,
            setup.seconds,
            lambda text: say(f"{subject.name}: {text}"),
        )
        found = api.inspect(jobs[0].artifact)
        return {
            "name": subject.name,
            "facts": facts,
            "entrants": entrants,
            "flops": found["flops"],
            "tuned": found["tuning"]["share_of_flops"],
            "peak_gflops": setup.peak(),
            "onnx_bytes": Path(jobs[0].onnx).stat().st_size,
            "artifact_bytes": found["bytes"],
        }  # fmt: skip

    return dict(once(path, measure))


def show(results: Sequence[dict[str, Any]], names: Sequence[str], *, markdown: bool) -> None:
    """Print the table."""
    if markdown:
        print(table.markdown(results, names))
        return
    from rich.console import Console
    from rich.table import Table

    shown = Table(caption=table.caption(results), caption_justify="left")
    for heading in table.headings(names):
        shown.add_column(heading, justify="left" if heading in {"model", "fastest"} else "right")
    for row in table.rows(results, names):
        shown.add_row(*row)
    Console(width=None if sys.stdout.isatty() else WIDTH).print(shown)


def main(words: Sequence[str] | None = None) -> None:
    asked = arguments(words)
    results, failures = [], []
    try:
        subjects, names = models.chosen(asked.models), peers.chosen(asked.peers)
        if asked.trials:
            names = [peers.UNTUNED, *names]
        out = asked.out.resolve()
        setup = Setup(
            out=out, logs=(asked.logs or out / "logs").resolve(), peers=tuple(names),
            threads=asked.threads, trials=asked.trials, target=asked.target,
            rounds=asked.rounds, seconds=asked.seconds,
        )  # fmt: skip
        check(setup)
        check_places(asked)
        for subject in subjects:
            try:
                results.append(measured(setup, subject))
            except MlcError as error:
                failures.append(f"{subject.name}: {error.message} {error.hint or ''}".strip())
                say(failures[-1])
    except MlcError as error:
        sys.exit(f"{error.message}\n{error.hint or ''}".strip())
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on from here")
    if asked.json:
        asked.json.write_text(json.dumps({"results": results, "failures": failures}) + "\n")
    if results:
        show(results, names, markdown=asked.markdown)
        if asked.chart:
            asked.chart.write_bytes(chart.draw(results, names))
    if failures:
        sys.exit("\n".join(["failed:", *failures]))


if __name__ == "__main__":
    main()
