"""What a server with a GPU does for `mlc tune`: it times candidates' programs there, or compares two.

A request holds whatever is to be done in one session: programs, their tensors, how to measure. It
comes from whoever reaches the port, so sizes and form are checked; that a program's code does no harm
cannot be. The session's process may crash or hang, as any; errors are part of the answer, because
TVM's RPC drops an exception's words.
"""

from __future__ import annotations

import json
import math
import re
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc.errors import MlcError, RunError
from mlc.gpu.device import decode, encode
from mlc.options import MAX_TENSOR_BYTES, MAX_TENSOR_RANK
from mlc.runtime import driver_api
from mlc.runtime.cuda_kernel import LoadedKernel, start
from mlc.runtime.verify import compare
from mlc.tune.place import pattern, random_values

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlc.gpu.device import Program

    Array = np.ndarray[Any, Any]

FUNCTION = "mlc.gpu.measure"
MAX_REQUEST_BYTES = 64 << 20
_MAX_CALLS = 10_000  # between two marks
_MAX_ROUNDS = 1000
_DTYPE = re.compile(r"bool|u?int(8|16|32|64)|float(16|32|64)")


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """An argument of a kernel; `written`: an output."""

    shape: tuple[int, ...]
    dtype: str
    written: bool

    @property
    def nbytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A program, and the tensors that it is called with, in its order."""

    program: Program
    tensors: tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class How:
    """How candidates are measured; see `mlc.tune.trial.Settings`.

    `rounds` times each, A B C A B C ..., fewer after `seconds`; with `compare` the first two are not
    timed but their outputs compared, the second being the reference.
    """

    rounds: int
    seconds: float
    min_repeat_ms: float
    warm_up_ms: float
    seed: int
    compare: bool


def request(candidates: Sequence[tuple[Program, Sequence[Tensor]]], how: How) -> bytes:
    """Return a request in the bytes that `answer` takes."""
    rows = [
        {
            "program": json.loads(encode(program)),
            "tensors": [asdict(tensor) for tensor in tensors],
        }
        for program, tensors in candidates
    ]
    return json.dumps({"candidates": rows, "how": asdict(how)}).encode()


def answer(data: bytes) -> str:
    """Do what a request asks, on this machine's GPU.

    Returns:
        JSON: `{"results": [...]}`, for each candidate `{"costs": [seconds a call, ...]}` or `{"error":
        text}`; of a comparison one `{"passed": true, false or null, "detail": text}`. `{"error":
        text}` when nothing could be done.
    """
    try:
        candidates, how = _read(bytes(data))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return json.dumps({"error": f"the request has another form than expected ({error})"})
    try:
        driver = driver_api.Driver()
        run = _compared if how.compare else _timed
        results = run([_Loaded(driver, one, how) for one in candidates], how)
    except MlcError as error:
        return json.dumps({"error": error.message})
    return json.dumps({"results": results})


def _read(data: bytes) -> tuple[list[Candidate], How]:
    if len(data) > MAX_REQUEST_BYTES:
        raise ValueError(f"{len(data)} bytes")
    row = json.loads(data)
    how = How(**row["how"])
    numbers = (how.seconds, how.min_repeat_ms, how.warm_up_ms)
    if not all(0 <= float(number) <= 3600 * 1000 for number in numbers):
        raise ValueError("a time is out of bounds")
    if not 1 <= int(how.rounds) <= _MAX_ROUNDS or not 0 <= int(how.seed) < 1 << 32:
        raise ValueError("rounds or seed is out of bounds")
    candidates = [
        Candidate(
            program=decode(entry["program"]),
            tensors=tuple(_tensor(tensor) for tensor in entry["tensors"]),
        )
        for entry in row["candidates"]
    ]
    if how.compare and len(candidates) != 2:
        raise ValueError("a comparison has two candidates")
    return candidates, how


def _tensor(row: dict[str, Any]) -> Tensor:
    shape, dtype = tuple(row["shape"]), str(row["dtype"])
    sizes = all(type(size) is int and 0 < size < 1 << 40 for size in shape)
    if not sizes or len(shape) > MAX_TENSOR_RANK or not _DTYPE.fullmatch(dtype):
        raise ValueError("a tensor's shape or type is out of bounds")
    tensor = Tensor(shape=shape, dtype=dtype, written=bool(row["written"]))
    if tensor.nbytes > MAX_TENSOR_BYTES:
        raise ValueError("a tensor is too large")
    return tensor


class _Loaded:
    """A candidate on the GPU, ready to be called; `error` says why not. The session's end frees it."""

    def __init__(self, driver: Any, candidate: Candidate, how: How):
        self.driver = driver
        self.tensors = candidate.tensors
        self.error = ""
        self.costs: list[float] = []
        self.number = 1
        try:
            kernel = LoadedKernel(driver, candidate.program, use_cubin=True)
            self.addresses = [driver.allocate(tensor.nbytes) for tensor in self.tensors]
            temporaries = [driver.allocate(size) for size in candidate.program.temporaries]
            self.calls = kernel.calls(self.addresses, temporaries)
            self._fill(how)
        except RunError as error:
            self.error = error.message

    def _fill(self, how: How) -> None:
        """Put values into the inputs; equal ones into equal inputs where outputs are compared."""
        for position, (tensor, address) in enumerate(
            zip(self.tensors, self.addresses, strict=True)
        ):
            if not tensor.written:
                draw = random_values if how.compare else pattern
                array = draw(tensor.shape, tensor.dtype, how.seed + position)
                self.driver.upload(address, np.ascontiguousarray(array))

    def seconds(self, number: int) -> float:
        """Return the seconds of a call, the mean of so many, by the GPU's clock."""
        marks = self.driver.event(), self.driver.event()
        self.driver.record(marks[0])
        for _ in range(number):
            start(self.driver, self.calls)
        self.driver.record(marks[1])
        self.driver.synchronize()
        found: float = self.driver.elapsed(*marks)
        for mark in marks:
            self.driver.forget(mark)
        return found / number

    def warm_up(self, how: How) -> None:
        """Run until clocks are up, and choose how many calls make a cost."""
        first = self.seconds(1)
        mean = self.seconds(_calls(how.warm_up_ms, first))
        self.number = _calls(how.min_repeat_ms, mean)

    def outputs(self) -> list[Array]:
        """Run once; return the outputs."""
        self.seconds(1)
        found = []
        for tensor, address in zip(self.tensors, self.addresses, strict=True):
            if tensor.written:
                found.append(np.empty(tensor.shape, tensor.dtype))
                self.driver.download(found[-1], address)
        return found


def _calls(milliseconds: float, each: float) -> int:
    """Return how many calls of `each` seconds take so long."""
    return max(1, min(_MAX_CALLS, math.ceil(milliseconds / 1e3 / max(each, 1e-9))))


def _timed(loaded: Sequence[_Loaded], how: How) -> list[dict[str, Any]]:
    deadline = time.monotonic() + how.seconds
    for position in range(how.rounds + 1):
        for one in loaded:
            if one.error:
                continue
            try:
                if position:
                    one.costs.append(one.seconds(one.number))
                else:
                    one.warm_up(how)
            except RunError as error:
                one.error = error.message
        if position and time.monotonic() > deadline:
            break
    return [{"error": one.error} if one.error else {"costs": one.costs} for one in loaded]


def _compared(loaded: Sequence[_Loaded], _how: How) -> list[dict[str, Any]]:
    ours, reference = loaded
    if reference.error:
        return [
            {"passed": None, "detail": f"not checked: the reference failed ({reference.error})"}
        ]
    if ours.error:
        return [{"passed": False, "detail": ours.error}]
    if ours.tensors != reference.tensors:
        return [{"passed": None, "detail": "not checked: they take other tensors"}]
    theirs = reference.outputs()
    try:
        found = ours.outputs()
    except RunError as error:
        return [{"passed": False, "detail": error.message}]
    checks = [compare("output", a, b) for a, b in zip(found, theirs, strict=True)]
    return [{"passed": all(c.passed for c in checks), "detail": "; ".join(map(str, checks))}]
