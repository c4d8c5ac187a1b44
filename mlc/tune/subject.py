"""What a tuning run works on: the model compiled untuned, its tasks, the device that measures."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlc import artifact, driver, target
from mlc.cache import key_of, open_cache
from mlc.errors import TuningError, UsageError
from mlc.events import timed
from mlc.options import CompileOptions, TuneOptions
from mlc.tune import baseline
from mlc.tune.farm import Farm, find, measuring_device
from mlc.tune.tasks import Task, choose, kernels_of, merged, tasks_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from mlc.driver import Built
    from mlc.events import OnEvent
    from mlc.tune.device import Device

    Symbols = Mapping[str, tuple[str, ...]]

_PROFILE_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is tuned: the options, target and device, its tasks, the untuned artifact.

    Where `--shape` lists sizes, there is an untuned artifact for each combination, and the tasks are
    those of all. `symbols` has for each artifact the kernels behind its tasks (`symbols_of`). `seconds` is what a run of them takes, all kernels together (0 where other
    machines measure); `farm` holds those machines, None: this one measures.
    """

    options: TuneOptions
    chosen: target.Target
    device: Device
    tasks: tuple[Task, ...]
    untuned: tuple[Path, ...]
    symbols: tuple[Symbols, ...]
    seconds: float
    farm: Farm | None = None


def options_of(fields: dict[str, Any]) -> TuneOptions:
    """Return the options that came as JSON data."""
    return TuneOptions(**{**fields, "shapes": tuple(fields["shapes"])})


def check_options(options: TuneOptions) -> None:
    """Raise UsageError for options that cannot work, before the long work starts."""
    if options.trials < 0:
        raise UsageError("--trials needs 0 or more")
    if options.budget is not None and options.budget <= 0:
        raise UsageError("--budget needs a time above 0, such as 20m")
    if options.batch < 1:
        raise UsageError("--batch needs at least 1")
    if not 0 < options.run_timeout < math.inf:
        raise UsageError("--run-timeout needs seconds above 0")


def logs_root(options: TuneOptions) -> Path:
    """Return the folder of tuning logs.

    Raises:
        UsageError: `--logs` names a file.
    """
    root = Path(options.logs or "tuning_logs")
    if root.exists() and not root.is_dir():
        raise UsageError(f"--logs {root} is no folder")
    return root


def prepare(options: TuneOptions, folder: Path, on_event: OnEvent) -> Subject:
    """Compile the model untuned, time its kernels, and return its tasks.

    Raises:
        TargetError: the measuring machine cannot run code for the target.
        TuningError: the model has no task (the message says why), or the filter leaves none.
    """
    farm = find(options, on_event)
    device = measuring_device(options, farm)
    chosen = device.target
    untuned: list[Path] = []
    symbols: list[Symbols] = []
    parts: list[tuple[list[Task], float]] = []
    operators: set[str] = set()
    total = 0.0
    for built in build_with(options, chosen, lambda _key: None, on_event):
        untuned.append(folder / f"untuned{len(untuned)}.mlc")
        artifact.save(built.contents, untuned[-1])
        symbols.append(symbols_of(built))
        seconds: dict[str, float] = {}  # this machine may be unable to run code for the device
        if farm is None:
            seconds = timed("profile", on_event, partial(kernel_seconds, untuned[-1], device))
        kernels, calls = built.library.kernels, built.library.plan.calls
        work = sum(kernel.flops * calls[kernel.symbol] for kernel in kernels)
        spent = sum(seconds.values())
        parts.append((tasks_of(kernels, calls, built.dispatch, seconds), spent or work))
        operators.update(op for kernel in kernels for op in kernel.operators)
        total += spent
    tasks = merged(parts)
    if not tasks:
        raise TuningError(
            "no tunable task was found: no operator of this model has an AutoTVM template "
            f"(its operators are {', '.join(sorted(operators)[:12])})",
            "compile it as it is; convolutions, dense layers and batched products can be tuned",
        )
    return Subject(
        options=options,
        chosen=chosen,
        device=device,
        tasks=tuple(choose(tasks, options.tasks)),
        untuned=tuple(untuned),
        symbols=tuple(symbols),
        seconds=total,
        farm=farm,
    )


def symbols_of(built: Built) -> Symbols:
    """Return the symbols of the kernels behind each task of a compiled model, by the task's key.

    Of two rivals either has those of the one that is used.
    """
    found = {
        key: tuple(kernel.symbol for kernel in kernels)
        for key, kernels in kernels_of(built.library.kernels, built.dispatch).items()
    }
    rivals = built.dispatch.rivals
    return {rivals[key]: own for key, own in found.items() if key in rivals} | found


def kernel_seconds(untuned: Path, device: Device) -> dict[str, float]:
    """Return the seconds per run of each kernel of an artifact, by symbol.

    They are measured once per artifact and device: a run that is continued starts from the same
    times, and decides as it would have.
    """
    cache = open_cache()
    key = key_of(artifact.read_manifest(untuned), device.id)
    stored = cache.get("profiles", key)
    if stored is not None:
        found: dict[str, float] = json.loads(stored)
        return found
    found = baseline.kernel_seconds(untuned, device.threads, _PROFILE_S)
    cache.put("profiles", key, json.dumps(found).encode())
    return found


def build_with(
    options: TuneOptions,
    chosen: target.Target,
    lookup: Callable[[str], Any],
    on_event: OnEvent,
) -> Iterator[Built]:
    """Yield the model compiled with the records that `lookup` offers, for each combination of sizes.

    The file is read each time: converting takes its weights over, and tuning should not hold them.
    """
    from mlc.frontend import onnx_file, shapes

    asked = CompileOptions(
        model=str(options.model),
        target=options.target,
        opt_level=options.opt_level,
    )
    for one in shapes.combinations(options.shapes):
        plain = replace(asked, shapes=one.options)
        file = onnx_file.read(Path(str(options.model)))
        yield driver.build_model(plain, chosen, file, open_cache(), lookup, on_event)
