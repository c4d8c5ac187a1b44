"""Run one case in a process of its own, through mlc's public path (or through ONNX Runtime).

Every process is forked from one that has imported TVM (1.4 s), limited in time and memory, and
reports its outcome through a pipe: a crash or a hang is one failed test.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import mlc
from mlc import driver, ort_env
from mlc.errors import MlcError
from mlc.events import ignore
from mlc.options import CompileOptions
from mlc.target import resolve
from tests.conformance.cases import Case, bind

MEMORY_BYTES = 12 << 30
HURRY = " -opt-level=0"  # said to LLVM, for kernels that take longer to compile than to run
_FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a case: "passed", "wrong" (another answer), "refused", "crashed", "hung"."""

    name: str
    status: str
    reason: str = ""
    seconds: float = 0.0


class WrongAnswerError(Exception):
    """The model ran, and an output is not the expected one."""


def with_mlc(case: Case, folder: Path, opt_level: int) -> None:
    """Compile and run a case through mlc.

    Raises:
        MlcError: it was refused.
        WrongAnswerError: an output differs.
    """
    for position, (inputs, expected) in enumerate(case.data_sets()):
        proto, feed = bind(case, inputs)
        model = folder / f"{position}.onnx"
        model.write_bytes(proto.SerializeToString())
        options = _options(model, feed, opt_level, quick=case.family != "real")
        report = driver.compile_model(asdict(options), ignore)
        with mlc.open(report["path"], threads=1) as session:
            outputs = session.run(feed)
        compare(list(outputs.values()), expected, case)


def with_onnxruntime(case: Case, folder: Path, opt_level: int) -> None:
    """Run a case through ONNX Runtime as it comes, every input handed in at run time."""
    ort = ort_env.onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(case.model().SerializeToString(), options)
    names = [value.name for value in session.get_inputs()]
    for inputs, expected in case.data_sets():
        feed = dict(zip(names, map(np.asarray, inputs), strict=True))
        compare(session.run(None, feed), expected, case)


ENGINES: dict[str, Callable[[Case, Path, int], None]] = {
    "mlc": with_mlc,
    "onnxruntime": with_onnxruntime,
}


def _options(model: Path, feed: dict[str, Any], opt_level: int, *, quick: bool) -> CompileOptions:
    return CompileOptions(
        model=str(model),
        output=str(model.with_suffix(".mlc")),
        target=resolve("llvm").tvm + (HURRY if quick else ""),
        opt_level=opt_level,
        shapes=tuple(f"{n}:{','.join(map(str, a.shape))}" for n, a in feed.items()),
        logs=str(model.parent),  # not the ones of this checkout
        verify=False,
        cache=False,
        jobs=1,
    )


def compare(outputs: Sequence[Any], expected: Sequence[Any], case: Case) -> None:
    """Raise WrongAnswerError unless the outputs are the expected ones, by onnx's own rules."""
    if len(outputs) != len(expected):
        raise WrongAnswerError(f"{len(outputs)} outputs instead of {len(expected)}")
    for position, (ours, wanted) in enumerate(zip(outputs, expected, strict=True)):
        if ours.shape != wanted.shape or ours.dtype != wanted.dtype:
            raise WrongAnswerError(
                f"output {position} is {ours.dtype}{list(ours.shape)} "
                f"instead of {wanted.dtype}{list(wanted.shape)}"
            )
        rtol = case.rtol
        if ours.dtype.name == "bfloat16":  # two units in the last place, as onnx's runner has it
            rtol = 2**-6
        wide = np.float32 if ours.dtype.name == "bfloat16" else ours.dtype
        try:
            np.testing.assert_allclose(
                ours.astype(wide), wanted.astype(wide), rtol=rtol, atol=case.atol
            )
        except AssertionError as error:
            lines = [line for line in str(error).splitlines() if "ismatch" in line or "Max" in line]
            raise WrongAnswerError(f"output {position}: " + "; ".join(lines)) from None


def run_all(
    cases: Sequence[Case], engine: str, *, jobs: int, limit: float, opt_level: int
) -> Iterator[Outcome]:
    """Yield the outcome of every case, in the order they end; `limit` is in seconds each."""
    pending = list(reversed(cases))
    _warm_up()
    running: dict[Any, tuple[Any, Case, float]] = {}
    while pending or running:
        while pending and len(running) < jobs:
            case = pending.pop()
            ours, theirs = _FORK.Pipe(duplex=False)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # forking beside idle threads
                process = _FORK.Process(target=_child, args=(case, engine, opt_level, theirs))
                process.start()
            theirs.close()
            running[ours] = (process, case, time.monotonic())
        first = min(started for _, _, started in running.values())
        ready = connection.wait(list(running), timeout=max(0.0, first + limit - time.monotonic()))
        late = [p for p, (_, _, since) in running.items() if time.monotonic() - since >= limit]
        for pipe in dict.fromkeys([*ready, *late]):
            process, case, started = running.pop(pipe)
            seconds = time.monotonic() - started
            yield _outcome(pipe, process, case, seconds, hung=pipe not in ready, limit=limit)


def _warm_up() -> None:
    """Compile something small here, so that no child has to load and set up the compiler again."""
    info = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [2]) for n in "xy"]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Exp", ["x"], ["y"])], "warm", info[:1], info[1:]
    )
    with tempfile.TemporaryDirectory(prefix="mlc-") as folder:
        model = Path(folder) / "warm.onnx"
        model.write_bytes(onnx.helper.make_model(graph, ir_version=8).SerializeToString())
        driver.compile_model(asdict(_options(model, {}, 1, quick=True)), ignore)


def _outcome(
    pipe: Any, process: Any, case: Case, seconds: float, *, hung: bool, limit: float
) -> Outcome:
    status, reason = "hung", f"not done within {limit:.0f} s"
    if not hung:
        try:
            status, reason = pipe.recv()
        except EOFError:
            process.join()
            code = process.exitcode or 0
            how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
            status, reason = "crashed", how
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)  # the linker may still run
    process.join()
    pipe.close()
    return Outcome(name=case.name, status=status, reason=reason, seconds=seconds)


def _child(case: Case, engine: str, opt_level: int, answer: Any) -> None:
    os.setpgid(0, 0)
    quiet = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(quiet, descriptor)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="mlc-") as folder:
        answer.send(_verdict(case, engine, Path(folder), opt_level))
    answer.close()
    os._exit(0)


def _verdict(case: Case, engine: str, folder: Path, opt_level: int) -> tuple[str, str]:
    sys.setrecursionlimit(10_000)
    try:
        ENGINES[engine](case, folder, opt_level)
    except WrongAnswerError as error:
        return "wrong", str(error)
    except MlcError as error:
        return "refused", _one_line(error.message)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is this test's result
        return "refused", _one_line(f"{type(error).__name__}: {error}")
    return "passed", ""


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()[:400]
