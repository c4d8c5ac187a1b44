"""`make records`: tune the models of the suite for AVX2; the best records ship with mlc.

    python -m benchmarks.records [--models NAME,...] [--trials N] [--target NAME] [--work DIR]

Measurements stay in `--work`, so that a killed run continues and a second one adds to the first; only
the best of each task go to `tuning_logs/`, in place of what is there. To be run on an idle machine, and again when
a template or the machine's class of CPUs changes: records of other source do not apply.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.suite import models
from mlc import api
from mlc.errors import UsageError

SHIPPED = Path(__file__).resolve().parents[1] / "tuning_logs"
TARGET = "x86-64-v3"


def mlc(*arguments: object) -> None:
    """Run an mlc command, its output to the terminal; end with its exit code when it fails."""
    done = subprocess.run([sys.executable, "-m", "mlc", *map(str, arguments)], check=False)
    if done.returncode:
        sys.exit(done.returncode)


def main() -> None:
    """Tune each model, and put the best records where the wheel takes them from."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--models", default="", help=f"some of {', '.join(models.SUBJECTS)}")
    parser.add_argument("--trials", type=int, default=500, help="for each model [default: 500]")
    parser.add_argument("--target", default=TARGET, help=f"[default: {TARGET}]")
    parser.add_argument("--work", type=Path, default=Path("build/records"))
    asked = parser.parse_args()
    try:
        subjects = models.chosen(asked.models)
    except UsageError as error:
        parser.error(f"{error.message}; {error.hint}")
    logs, best = asked.work / "logs", asked.work / "best"
    asked.work.mkdir(parents=True, exist_ok=True)
    for subject in subjects:
        model = asked.work / f"{subject.name}.onnx"
        if not model.exists():
            api.export(subject.factory, subject.inputs(), model)
        mlc("tune", model, "--target", asked.target, "--trials", asked.trials, "--logs", logs)
    shutil.rmtree(best, ignore_errors=True)
    shutil.copytree(
        logs, best, ignore=lambda _folder, found: {n for n in found if n.endswith(".json")}
    )
    mlc("logs", "prune", "--logs", best)
    for file in best.glob("*/*.jsonl"):
        place = SHIPPED / file.relative_to(best)
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, place)
        print(f"{place}: {file.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
