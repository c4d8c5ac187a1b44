"""`python -m tests.hostile.fuzz`: changed models through `mlc check` and the import, for a while.

    python -m tests.hostile.fuzz --seconds 600 --seed 1 --keep findings

Each in a fork with limits of time and memory. What is a bug, or hangs, is written to the folder
`--keep`, and makes the exit code 1; contained crashes are counted.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from mlc import tvm_env
from tests.hostile.attempt import attempt, imported
from tests.hostile.mutate import mutated, seeds


def main() -> int:
    """Run what the command line asks for; return the exit code."""
    options = _options()
    tvm_env.tvm()  # forks have it
    sources, counts, seed = seeds(), Counter[str](), options.seed
    end = time.monotonic() + options.seconds
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        while time.monotonic() < end:
            rng = random.Random(seed)
            path.write_bytes(mutated(rng.choice(sources), rng).SerializeToString())
            ending = attempt(path, imported)
            counts[ending.status] += 1
            if not ending.good or ending.status == "crashed":
                sys.stdout.write(f"seed {seed} {ending.status}: {ending.message}\n")
            if not ending.good and options.keep:
                options.keep.mkdir(parents=True, exist_ok=True)
                (options.keep / f"{seed}.onnx").write_bytes(path.read_bytes())
            seed += 1
    sys.stdout.write(", ".join(f"{n} {s}" for s, n in counts.most_common()) + "\n")
    return 1 if counts["bug"] or counts["hung"] else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0, help="of the first model; then upwards")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="for what should not be")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
