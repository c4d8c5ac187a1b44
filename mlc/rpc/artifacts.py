"""What a server does for `mlc tune` at its end: it takes two artifacts and compares them.

By the function that compares them where tuning measures locally, so that no call travels while the
clock runs. What a client sends lies in the session's folder, which goes when the session ends. Errors
are part of the answer, because TVM's RPC drops an exception's words.
"""

from __future__ import annotations

import json
from pathlib import Path

from mlc import events
from mlc.errors import MlcError
from mlc.tune import baseline

APPEND = "mlc.artifacts.append"
FUNCTION = "mlc.artifacts.compare"


def append(name: str, data: bytes) -> None:
    """Add bytes to the end of a file in the session's folder.

    Raises:
        ValueError: the name is a path.
    """
    with _in_folder(name).open("ab") as file:
        file.write(data)


def answer(before: str, after: str, threads: int) -> str:
    """Compare two files that were sent.

    Returns:
        JSON: the fields of `mlc.tune.baseline.Versus`, or `{"error": text}`.
    """
    paths = {"before": str(_in_folder(before)), "after": str(_in_folder(after))}
    try:
        found = baseline.compare_artifacts({**paths, "threads": threads}, events.ignore)
    except MlcError as error:
        return json.dumps({"error": error.message})
    return json.dumps(found)


def _in_folder(name: str) -> Path:
    """Return the place of a file: the folder of a session is its process's current one."""
    if Path(name).name != name:
        raise ValueError("a path is no name")
    return Path(name)
