"""The kernel of the machine's limit: it computes what it counts, in vector registers."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from mlc import build, isolate
from mlc.runtime.session import set_threads
from mlc.target import resolve
from mlc.tune.peak import Asked, kernel, peak_gflops

WIDE = Asked(target=resolve("x86-64-v3").tvm, threads=2, lanes=8, chains=12)


def code(tvm: Any, asked: Asked) -> Any:
    return tvm.build(kernel(asked), target=build.tvm_target(resolve(asked.target), 3))


def test_every_step_is_computed(tvm: Any, quick_target: str) -> None:
    asked = Asked(target=quick_target, threads=2, lanes=4, chains=3)
    chains = code(tvm, asked)["chains"]
    set_threads(2)
    factors = tvm.nd.array(np.array([0.5, 1.0], np.float32))
    expected = np.tile(np.repeat(np.arange(3, dtype=np.float32), 4), 2)
    for steps in range(4):
        result = tvm.nd.empty((2 * 3 * 4,), "float32")
        chains(steps, factors, result)
        np.testing.assert_array_equal(result.numpy(), expected)
        expected = expected * np.float32(0.5) + 1


def test_the_loop_is_fused_multiply_adds_in_registers(tvm: Any) -> None:
    """One per chain or a multiple (unrolled); in the loop nothing is loaded, stored or spilled."""
    assembly = code(tvm, WIDE).get_source("asm")
    blocks = [block.partition(":") for block in re.split(r"\n(?=\.\w+:)", assembly)]
    loops = [
        body
        for label, _, body in blocks
        if "vfmadd" in body and re.search(rf"\tj\w+\t{re.escape(label)}\b", body)
    ]
    assert loops
    for body in loops:
        fused = [line for line in body.splitlines() if "vfmadd" in line]
        assert len(fused) % WIDE.chains == 0
        assert all("%ymm" in line and "(" not in line for line in fused)
        assert "vmov" not in body


def test_it_is_measured_in_a_process_of_its_own() -> None:
    found = isolate.call(
        "mlc.tune.peak:measure",
        Asked(target=resolve("llvm").tvm, threads=1, lanes=4, chains=12),
    )
    assert found["gflops"] > 0
    assert found["waited"] >= 0


def test_a_target_of_another_machine_has_no_limit_here(tmp_path: Any) -> None:
    from mlc.cache import Cache

    other = resolve("llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a72")
    assert peak_gflops(other, 1, Cache(tmp_path)) is None


@pytest.mark.parametrize("name", ["avx512", "avx2", "neon", "scalar"])
def test_every_class_has_a_kernel_that_compiles(tvm: Any, name: str) -> None:
    from mlc.tune.peak import _OTHERS, _SHAPES

    target = {
        "avx512": "x86-64-v4",
        "avx2": "x86-64-v3",
        "neon": "llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a72",
        "scalar": "llvm -mtriple=x86_64-linux-gnu -mcpu=x86-64",
    }[name]
    lanes, chains = _SHAPES.get(name, _OTHERS)
    asked = Asked(target=resolve(target).tvm, threads=1, lanes=lanes, chains=chains)
    assert "chains" in code(tvm, asked).get_source("asm")
