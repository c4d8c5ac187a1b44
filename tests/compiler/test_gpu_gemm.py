"""The templates of products for GPUs: numbers at odd shapes in the simulator, their default, what takes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper

from mlc import target
from mlc.emulate.cuda import run_program
from mlc.errors import MissingToolError
from mlc.gpu import ptxas
from mlc.gpu.program import assemble
from mlc.tune.place import lower
from tests import models

try:
    ptxas.find()
except MissingToolError as error:
    pytest.skip(f"{error.message}; {error.hint}", allow_module_level=True)

SM = "cuda:sm_90"


def program(tvm: Any, name: str, args: tuple[Any, ...], tile: Any, depth: int) -> Any:
    from tvm import autotvm
    from tvm.autotvm.task.space import OtherOptionEntity

    card = target.resolve(SM)
    gpu = tvm.target.Target(card.tvm, host="llvm")
    task = autotvm.task.create(name, args, gpu)
    config = task.config_space.get(0)
    config._entity_map["tile"] = OtherOptionEntity(list(tile))
    config._entity_map["slice"] = OtherOptionEntity(depth)
    with gpu:
        schedule, tensors = task.instantiate(config)
    return assemble(lower(schedule, tensors, gpu), gpu, card.gpu)


def computed(found: Any, shape: tuple[int, ...], *operands: np.ndarray) -> np.ndarray:
    out = np.full(shape, np.nan, np.float32)
    run_program(found, [out, *operands])  # AutoTVM's tasks have the output first
    return out


@pytest.mark.parametrize("position", range(12))
def test_every_tile_at_odd_shapes(tvm, position):
    from tvm import te

    from mlc.schedules import gpu_gemm

    assert len(gpu_gemm._TILES) == 12
    tile, depth = gpu_gemm._TILES[position], gpu_gemm._SLICES[position % 3]
    m, n, k = 37, 45, 19
    a, b = models.floats(m, k, seed=1), models.floats(n, k, seed=2)
    args = te.placeholder(a.shape, name="a"), te.placeholder(b.shape, name="b")
    out = computed(program(tvm, gpu_gemm.DENSE, args, tile, depth), (m, n), a, b)
    np.testing.assert_allclose(out, a @ b.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("transposed", [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize(
    ("batches", "m", "n", "k"),
    [((3, 3), 5, 7, 9), ((1, 2), 17, 64, 8), ((2, 1), 64, 33, 32), ((1, 1), 1, 1, 1)],
)
def test_batches_transposed_and_not(tvm, transposed, batches, m, n, k):
    from tvm import te

    from mlc.schedules import gpu_gemm

    a, b = models.floats(batches[0], m, k, seed=1), models.floats(batches[1], k, n, seed=2)
    given = [
        np.ascontiguousarray(x.transpose(0, 2, 1)) if turn else x
        for x, turn in zip((a, b), transposed, strict=True)
    ]
    args = (*(te.placeholder(x.shape, name="x") for x in given), *transposed)
    found = program(tvm, gpu_gemm.BATCH_MATMUL, args, (4, 8, 4, 4), 8)
    out = computed(found, (max(batches), m, n), *given)
    np.testing.assert_allclose(out, a @ b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "tile"),
    [
        ((1, 4096, 4096), (16, 16, 8, 4)),
        ((1, 128, 2048), (4, 8, 4, 4)),
        ((8, 128, 128), (4, 8, 4, 4)),
        ((1, 128, 512), (4, 8, 2, 2)),
        ((1, 20, 20), (4, 8, 2, 2)),
    ],
)
def test_the_default_leaves_a_gpu_enough_blocks(tvm, shape, tile):
    from mlc.schedules import gpu_gemm

    assert gpu_gemm.default(*shape)[0] == tile


@pytest.mark.parametrize(("rows", "ours"), [(1, False), (16, False), (17, True), (64, True)])
def test_few_rows_are_left_to_tvm(compiled, rows, ours):
    from mlc import artifact
    from mlc.gpu.device import read

    weights = {"w": models.floats(40, 30)}
    proto = models.model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": [rows, 40]}, ["y"], weights
    )
    members = artifact.load(compiled(proto, target=SM).path, for_gpu=True).members
    (made,) = read(bytes(members[artifact.PROGRAMS])).values()
    (launch,) = made.launches
    assert (launch.block == (8, 4, 1)) == ours
    assert (launch.block == (64, 1, 1)) == (not ours)
