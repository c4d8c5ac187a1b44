"""`python -m benchmarks.tune`: see the package."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from benchmarks.tune import parts, report
from benchmarks.tune.setup import Setup
from mlc.errors import MlcError

PARTS = ("a", "b", "c", "d", "e")
DEFAULTS = {field.name: field.default for field in fields(Setup)}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tune",
        description=sys.modules["benchmarks.tune"].__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--parts", default=",".join(PARTS), help="some of %(default)s")
    parser.add_argument("--out", type=Path, default=Path("build/bench-tune"))
    parser.add_argument("--markdown", action="store_true", help="print what --out holds, and end")
    for name, kind, text in (
        ("trials", int, "of a whole tuning run"),
        ("seeds", int, "how many runs"),
        ("rounds", int, "blocks of 0.25 s that each artifact is timed for"),
        ("plan", int, "AutoTVM's plan_size: trials of a task before it fits a model"),
        ("model", str, "row of benchmarks.zoo, or an .onnx file"),
        ("second", str, "the same, for part c"),
        ("target", str, "as for mlc tune"),
    ):
        parser.add_argument(
            f"--{name}", type=kind, default=DEFAULTS[name], help=f"{text} [%(default)s]"
        )
    parser.add_argument("--stock-runner", dest="stock", action="store_true",
                        help="AutoTVM measures for the equal split, not mlc")  # fmt: skip
    found = parser.parse_args()
    found.parts = tuple(found.parts.split(","))
    if unknown := set(found.parts) - set(PARTS):
        parser.error(f"there is no part {', '.join(sorted(unknown))}")
    return found


def measure(setup: Setup, chosen: tuple[str, ...]) -> dict[str, Any]:
    """Return the results of the chosen parts, taking those steps that are not there yet."""
    seeds = range(setup.seeds)
    results: dict[str, Any] = {
        "setup": setup.facts(),
        "options": {**asdict(setup), "out": str(setup.out)},
    }
    if {"a", "b"} & set(chosen):
        results["ab"] = [
            parts.against_untuned_and_equal(setup, seed, with_equal="b" in chosen)
            for seed in seeds
        ]  # fmt: skip
    if "c" in chosen:
        results["c"] = [parts.transfer(setup, seed) for seed in seeds]
    if "d" in chosen:
        results["d"] = parts.warm_store(setup)
    if "e" in chosen:
        results["e"] = parts.killed(setup)
    return results


def main() -> None:
    asked = vars(arguments())
    chosen, show = asked.pop("parts"), asked.pop("markdown")
    setup = Setup(**{**asked, "out": asked["out"].resolve()})
    path = setup.out / "results.json"
    if show:
        print(report.markdown(json.loads(path.read_text())))
        return
    try:
        setup.claim()
        results = measure(setup, chosen)
    except MlcError as error:
        sys.exit(f"{error.message}\n{error.hint or ''}".strip())
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on from here")
    path.write_text(json.dumps(results, indent=1) + "\n")
    print_table(results, path)


def print_table(results: dict[str, Any], path: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=report.caption(results), title_justify="left")
    for heading in ("", "measured", "aim", "met"):
        table.add_column(heading)
    for row in report.rows(results):
        table.add_row(*row)
    Console().print(table)
    print(f"all figures: {path}")


if __name__ == "__main__":
    main()
