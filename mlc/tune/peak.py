"""How fast this machine can be at all: the fp32 limit of a target's code, in GFLOP/s.

The horizontal part of a roofline (Williams, Waterman, Patterson: Roofline, CACM 52(4), 2009): what
is reached when nothing waits for memory. A kernel built by the code generator that builds a model's
keeps independent chains of `x = x * a + b` in vector registers, enough of them that no instruction
waits for one before it; every thread runs the same. A kernel's share of this says what is left.

Blocks are short (about a millisecond) and the best one counts, so that other programs disturb it
little. A machine that is busy throughout still gives a low figure; so it is measured again until
that was done a few times undisturbed, and the highest figure seen is kept in the cache folder.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlc import isolate
from mlc.cache import key_of
from mlc.cpu import host_cpu
from mlc.errors import MlcError
from mlc.runtime.timing import CROWDED, waiting_seconds
from mlc.tune.device import device_for

if TYPE_CHECKING:
    from mlc.cache import Cache
    from mlc.events import OnEvent
    from mlc.target import Target

_RUNS = 2  # undisturbed measurements after which the highest figure is believed
_WARM_S, _MEASURE_S, _BLOCK_S = 0.1, 0.4, 1e-3
_FACTORS = (0.5, 1.0)  # the chains tend to 2: neither denormal nor infinite

# Floats in a vector and vectors at work, by vector class: latency times units is 8 on x86 and up to
# 16 on arm, and they must fit 16 registers (32 with avx512 and neon) beside the two factors.
_SHAPES = {"avx512": (16, 12), "avx2": (8, 12), "neon": (4, 24)}
_OTHERS = (4, 12)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the child is asked: the TVM target string, the kernel's shape."""

    target: str
    threads: int
    lanes: int
    chains: int


def peak_gflops(chosen: Target, threads: int, cache: Cache) -> float | None:
    """Return the fp32 GFLOP/s that code for a target reaches here, the highest ever seen.

    Measured in a process of its own (about two seconds), unless that was done often enough. None
    when it cannot be measured.
    """
    device = device_for(chosen, host_cpu(), threads)
    known = _known(cache, device.id)
    if known["runs"] < _RUNS:
        lanes, chains = _SHAPES.get(device.isa, _OTHERS)
        asked = Asked(target=chosen.tvm, threads=threads, lanes=lanes, chains=chains)
        try:
            found = isolate.call("mlc.tune.peak:measure", asked)
        except MlcError:  # a column of a table is not worth a run
            return known["gflops"] or None
        known = {
            "gflops": max(found["gflops"], known["gflops"]),
            "runs": known["runs"] + (found["waited"] <= CROWDED),
        }
        cache.put("peak", _key(device.id), json.dumps(known).encode())
    return float(known["gflops"])


def _known(cache: Cache, device: str) -> dict[str, Any]:
    stored = cache.get("peak", _key(device))
    return dict(json.loads(stored)) if stored else {"gflops": 0.0, "runs": 0}


def _key(device: str) -> str:
    return key_of(device, _SHAPES, _OTHERS)


def measure(fields: dict[str, Any], _on_event: OnEvent) -> dict[str, float]:
    """Return the GFLOP/s of the best block, and how long threads `waited` for a core (s per second).

    Runs in the child.
    """
    import numpy as np

    from mlc import build, target, tvm_env
    from mlc.runtime.session import set_threads

    asked = Asked(**fields)
    tvm = tvm_env.tvm()
    llvm = build.tvm_target(target.resolve(asked.target), 3)
    code = tvm.build(kernel(asked), target=llvm)["chains"]
    set_threads(asked.threads)
    factors = tvm.nd.array(np.array(_FACTORS, np.float32))
    result = tvm.nd.empty((asked.threads * asked.chains * asked.lanes,), "float32")

    def block(steps: int) -> float:
        started = time.perf_counter()
        code(steps, factors, result)
        return max(time.perf_counter() - started, 1e-9)

    block(1)  # starts the threads
    steps = max(1, round(1000 * _BLOCK_S / block(1000)))
    rates: list[float] = []
    waited = waiting_seconds()
    warm = time.perf_counter() + _WARM_S
    while (now := time.perf_counter()) < warm + _MEASURE_S:
        seconds = block(steps)
        if now < warm:
            steps = max(1, round(steps * _BLOCK_S / seconds))
        else:
            rates.append(steps / seconds)
    flops = 2 * asked.threads * asked.chains * asked.lanes  # in a step
    waited = (waiting_seconds() - waited) / (_WARM_S + _MEASURE_S)
    return {"gflops": flops * max(rates) / 1e9, "waited": waited}


def kernel(asked: Asked) -> Any:
    """Return the TIR: chains(steps, factors [2], result [threads * chains * lanes]).

    `steps` and the factors come at run time and every chain is written out, so that no compiler can
    compute it beforehand.
    """
    from tvm import ir, tir

    lanes, chains = asked.lanes, asked.chains
    builder = tir.ir_builder.create()
    steps = tir.Var("steps", "int32")
    factors = tir.decl_buffer((2,), "float32", name="factors")
    result = tir.decl_buffer((asked.threads * chains * lanes,), "float32", name="result")
    with builder.for_range(0, asked.threads, name="thread", kind="parallel") as thread:
        values = builder.allocate(f"float32x{lanes}", chains, name="values", scope="local")
        scale, shift = (tir.Broadcast(builder.buffer_ptr(factors)[k], lanes) for k in range(2))
        for chain in range(chains):
            values[chain] = tir.Broadcast(tir.FloatImm("float32", float(chain)), lanes)
        with builder.for_range(0, steps, name="step"):
            for chain in range(chains):
                values[chain] = values[chain] * scale + shift
        for chain in range(chains):
            place = tir.Ramp((thread * chains + chain) * lanes, 1, lanes)
            builder.emit(tir.BufferStore(result, values[chain], [place]))
    function = tir.PrimFunc([steps, factors, result], builder.get())
    named = function.with_attr({"global_symbol": "chains", "tir.noalias": True})
    return ir.IRModule({"chains": named})
