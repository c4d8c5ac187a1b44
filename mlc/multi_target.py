"""One compile for each of several targets, then one artifact of all of them."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlc import api, bundle, output, target
from mlc.errors import UsageError
from mlc.events import Notice, Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlc.events import OnEvent
    from mlc.options import CompileOptions


@dataclass(frozen=True, kw_only=True)
class BundleReport:
    """What was made: the artifact's path and size, wall time (s), and a report for each target.

    The reports' paths are the artifact's; their sizes are what the variants would take alone.
    `weights` are bytes: `stored`, and `shared`, what variants have in common and is stored once.
    """

    path: Path
    bytes: int
    seconds: float
    weights: dict[str, int]
    variants: tuple[api.CompileReport, ...]


def compile_bundle(
    options: CompileOptions, targets: Sequence[str], on_event: OnEvent
) -> BundleReport:
    """Compile for each target as the options say, into the one artifact `options.output`.

    Targets that come to the same code are compiled once, said aloud. Nothing is written unless all
    compiles succeed; each is kept in the cache, so that another try goes on where this one ended.

    Raises:
        MlcError: as `api.compile`; or there are too many targets.
    """
    started = time.perf_counter()
    path = Path(str(options.output))
    output.check(path, Path(options.model))
    if options.dump_ir is not None:
        raise UsageError("--dump-ir shows one target", "give a single `--target`")
    wanted = distinct(targets, on_event)
    with tempfile.TemporaryDirectory(prefix="mlc-", ignore_cleanup_errors=True) as folder:
        parts = [Path(folder, f"{number}.mlc") for number in range(len(wanted))]
        reports = []
        for name, part in zip(wanted, parts, strict=True):
            on_event(Notice(text=f"for {name}:"))
            asked = replace(options, target=name, output=str(part))
            reports.append(replace(api.compile_with(asked, on_event), path=path))
        joining = time.perf_counter()
        weights = bundle.save(parts, path)
        on_event(Stage(name="join", seconds=time.perf_counter() - joining))
    return BundleReport(
        path=path,
        bytes=path.stat().st_size,
        seconds=time.perf_counter() - started,
        weights=weights,
        variants=tuple(reports),
    )


def distinct(targets: Sequence[str], on_event: OnEvent) -> list[str]:
    """Return the targets without those that come to the same code as one before.

    Raises:
        TargetError: one is unknown.
    """
    found: dict[str, str] = {}
    for name in targets:
        first = found.setdefault(target.resolve(name).tvm, name)
        if first != name:
            on_event(Notice(text=f"the target {name} is the same as {first} here: compiled once"))
    return list(found.values())
