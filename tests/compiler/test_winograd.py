"""Winograd's convolution: the numbers it gives, where it is taken, and that `--exact` refuses it.

Tolerances are those of float32 in `conftest.assert_same`: 1e-4 relative, 1e-5 of the largest output.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from mlc import artifact
from mlc.errors import ArtifactError
from mlc.passes.run import count_kernels, optimize
from mlc.passes.table import pipeline
from mlc.runtime import session as sessions
from mlc.target import resolve
from mlc.tune.record import FALLBACK, Record
from mlc.tune.tasks import autotvm_task, tasks_of
from tests import models
from tests.compiler.conftest import Array, Compile, Compiled, assert_same, calls_of

node = helper.make_node
F2, F4 = "winograd F(2x2, 3x3)", "winograd F(4x4, 3x3)"


# --- the algorithm -------------------------------------------------------------------------------


def filtered(m: int, tiles: Array, filters: Array) -> Array:
    """Return the m x m outputs of tiles [t, c, m + 2, m + 2], summed over c as a kernel does."""
    from mlc.schedules import transforms

    def both(step: Callable[..., Any], array: Array) -> Array:
        """Apply a transform to both last axes."""
        for _ in range(2):
            rows = np.moveaxis(array, -1, 0)
            array = np.moveaxis(np.stack(step(m, lambda k, of=rows: of[k])), 0, -2)
        return array

    weights = transforms.transform_weights(m, filters).astype(tiles.dtype)
    products = np.zeros((len(tiles), m + 2, m + 2), tiles.dtype)
    for channel in range(tiles.shape[1]):
        products += both(transforms.transform_input, tiles)[:, channel] * weights[channel]
    return both(transforms.transform_output, products)


def direct(m: int, tiles: Array, filters: Array) -> Array:
    """Return the same, term by term."""
    outputs = np.zeros((len(tiles), m, m), tiles.dtype)
    for c, y, x in np.ndindex(filters.shape):
        outputs += tiles[:, c, y : y + m, x : x + m] * filters[c, y, x]
    return outputs


def tiles_and_filters(m: int, channels: int, seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    filters = rng.standard_normal((channels, 3, 3)) / np.sqrt(9 * channels)
    return rng.standard_normal((100, channels, m + 2, m + 2)), filters


@pytest.mark.parametrize("m", [2, 4])
def test_the_transforms_convolve(m: int, tvm: Any) -> None:
    tiles, filters = tiles_and_filters(m, 3)
    np.testing.assert_allclose(
        filtered(m, tiles, filters), direct(m, tiles, filters), rtol=0, atol=1e-12
    )


def rounding(m: int) -> float:
    """Return the root mean square error in float32 over that of direct convolution in float32."""
    given = tiles_and_filters(m, 64)
    single = [array.astype(np.float32) for array in given]
    exact = direct(m, *(array.astype(np.float64) for array in single))
    errors = [float(np.std(how(m, *single) - exact)) for how in (filtered, direct)]
    return errors[0] / errors[1]


@pytest.mark.parametrize(("m", "bound"), [(2, 1.5), (4, 3.0)])
def test_rounding_errors_stay_near_those_of_direct_convolution(
    m: int, bound: float, tvm: Any
) -> None:
    assert rounding(m) < bound


def test_our_points_round_less_than_the_papers(tvm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlc.schedules import transforms

    ours = rounding(4)
    monkeypatch.setitem(transforms._PAIRS, 4, (Fraction(1), Fraction(2)))
    assert ours < 0.6 * rounding(4)


# --- the template --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A layer: input [n, c, h, w], filters, padding top, left, bottom, right."""

    n: int
    c: int
    h: int
    w: int
    k: int
    padding: tuple[int, int, int, int]

    def arrays(self) -> tuple[Array, Array]:
        return (
            models.floats(self.n, self.c, self.h, self.w, seed=1),
            models.floats(self.k, self.c, 3, 3, seed=2),
        )

    def reference(self) -> Array:
        data, weight = (array.astype(np.float64) for array in self.arrays())
        top, left, bottom, right = self.padding
        padded = np.pad(data, ((0, 0), (0, 0), (top, bottom), (left, right)))
        h, w = padded.shape[2] - 2, padded.shape[3] - 2
        outputs = np.zeros((self.n, self.k, h, w))
        for y, x in np.ndindex(3, 3):
            outputs += np.einsum(
                "nchw,kc->nkhw", padded[:, :, y : y + h, x : x + w], weight[:, :, y, x]
            )
        return outputs


CASES = {
    "7x7": Case(1, 16, 7, 7, 16, (1, 1, 1, 1)),
    "13x9": Case(1, 16, 13, 9, 32, (1, 1, 1, 1)),
    "one-output": Case(1, 16, 3, 3, 16, (0, 0, 0, 0)),
    "odd-channels": Case(1, 3, 8, 8, 20, (1, 1, 1, 1)),
    "batch-3": Case(3, 16, 9, 9, 16, (1, 1, 1, 1)),
    "padding-2": Case(1, 16, 6, 11, 16, (2, 2, 2, 2)),
    "padding-asymmetric": Case(3, 8, 10, 5, 24, (0, 1, 2, 0)),
    "prime-channels": Case(1, 7, 5, 5, 13, (1, 1, 1, 1)),
}


def convolve(case: Case, text: str, knobs: dict[str, Any] | int | None) -> Array:
    """Return the convolution by the template: default with some knobs, or a config by index."""
    from tvm import autotvm, nd
    from tvm.autotvm.task.space import ConfigEntity, OtherOptionEntity
    from tvm.target import Target

    from mlc.passes.fold import relayout
    from mlc.schedules import winograd, winograd_weights
    from mlc.tune.place import Here

    data, weight = case.arrays()
    target = Target(text)
    with target:
        placed = SimpleNamespace(shape=data.shape)
        layer = winograd.layer_of(placed, case.padding, case.k)
        default = winograd.default(layer, knobs.get("outputs", 0) if isinstance(knobs, dict) else 0)
    tensors = [("TENSOR", array.shape, "float32") for array in (data, weight)]
    args = [*tensors, case.padding, case.k, layer.out_block]
    task = autotvm.task.create(winograd.TEMPLATE, args, target)
    if isinstance(knobs, int):
        config = task.config_space.get(knobs)
    else:
        chosen = {**default, **(knobs or {})}
        entities = {name: OtherOptionEntity(value) for name, value in chosen.items()}
        config = ConfigEntity(0, None, entities, [])
    with target:
        schedule, (out, *given) = task.instantiate(config)
    u, a = sorted(given, key=lambda tensor: len(tensor.shape))
    function = Here().compile(schedule, [a, u, out], target)
    blocked = relayout(data, "NCHW", f"NCHW{layer.in_block}c")
    packed = winograd_weights.packed(weight, tuple(map(int, u.shape)))
    assert packed is not None
    result = nd.array(np.zeros(tuple(map(int, out.shape)), np.float32))
    function(nd.array(blocked), nd.array(packed), result)
    plain = relayout(result.numpy(), f"NCHW{layer.out_block}c", "NCHW")
    assert plain is not None
    return plain


def assert_convolves(case: Case, outputs: Array) -> None:
    assert_same({"y": outputs}, {"y": case.reference().astype(np.float32)})


@pytest.mark.parametrize("outputs", [2, 4])
@pytest.mark.parametrize("name", CASES)
def test_shapes(name: str, outputs: int, quick_target: str, tvm: Any) -> None:
    assert_convolves(CASES[name], convolve(CASES[name], quick_target, {"outputs": outputs}))


@pytest.mark.parametrize("parallel", ["chunks", "stages"])
@pytest.mark.parametrize("rows", [0, 1, 2])
def test_chunks(rows: int, parallel: str, quick_target: str, tvm: Any) -> None:
    """Batch 3, and a last chunk that is not full: 13 rows are 4 rows of tiles of 4 outputs."""
    case = Case(3, 16, 13, 9, 32, (1, 1, 1, 1))
    knobs = {"outputs": 4, "rows": rows, "parallel": parallel, "tile": [5, 1]}
    assert_convolves(case, convolve(case, quick_target, knobs))


@pytest.mark.parametrize("cpu", ["x86-64-v2", "x86-64-v3"])
def test_vector_widths(cpu: str, tvm: Any) -> None:
    case = Case(1, 16, 9, 9, 24, (1, 1, 1, 1))
    assert_convolves(case, convolve(case, f"{resolve(cpu).tvm} -opt-level=0", None))


@pytest.mark.parametrize("seed", range(6))
def test_random_configs(seed: int, quick_target: str, tvm: Any) -> None:
    case = CASES["13x9"]
    index = random.Random(seed).randrange(400)
    assert_convolves(case, convolve(case, quick_target, index))


@pytest.mark.parametrize(("outputs", "bound"), [(2, 2.0), (4, 5.0)])
def test_accuracy_of_a_kernel(outputs: int, bound: float, tvm: Any) -> None:
    """The largest error in float32, at most so many times that of direct convolution."""
    case = Case(1, 64, 14, 14, 16, (1, 1, 1, 1))
    exact = case.reference()
    data, weight = case.arrays()
    padded = np.pad(data, ((0, 0), (0, 0), (1, 1), (1, 1)))
    plain = np.zeros(exact.shape, np.float32)
    for c, y, x in np.ndindex(64, 3, 3):  # one term after the other, as a direct kernel sums
        plain += weight[None, :, c, y, x, None, None] * padded[:, c, None, y : y + 14, x : x + 14]
    ours = convolve(case, resolve("llvm").tvm, {"outputs": outputs})
    assert np.abs(ours - exact).max() < bound * np.abs(plain - exact).max()


# --- in a model ----------------------------------------------------------------------------------


def residual_block(channels: int = 16, size: int = 9, **conv: Any) -> onnx.ModelProto:
    """conv + bias + relu, conv + bias + residual + relu, as in ResNet-18; both 3x3."""
    conv = {"pads": [1, 1, 1, 1], **conv}
    weights = {
        "w1": models.floats(channels, channels, 3, 3, seed=1, scale=0.1),
        "w2": models.floats(channels, channels, 3, 3, seed=2, scale=0.1),
        "b1": models.floats(channels, seed=3),
        "b2": models.floats(channels, seed=4),
    }
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["a"], "first", **conv),
        node("Relu", ["a"], ["b"], "relu1"),
        node("Conv", ["b", "w2", "b2"], ["c"], "second", **conv),
        node("Add", ["c", "x"], ["d"], "residual"),
        node("Relu", ["d"], ["y"], "relu2"),
    ]
    return models.model(nodes, {"x": [1, channels, size, size]}, ["y"], weights)


def one_conv(c: int, k: int, size: int = 16, kernel: int = 3, **conv: Any) -> onnx.ModelProto:
    groups = conv.get("group", 1)
    weights = {"w": models.floats(k, c // groups, kernel, kernel, seed=1, scale=0.1)}
    nodes = [node("Conv", ["x", "w"], ["y"], "conv", **{"pads": [1, 1, 1, 1], **conv})]
    return models.model(nodes, {"x": [1, c, size, size]}, ["y"], weights)


def algorithms(manifest: dict[str, Any]) -> list[str]:
    found = [kernel["algorithm"] for kernel in manifest["kernels"].values()]
    return sorted(filter(None, found))


@pytest.mark.parametrize("outputs", [2, 4])
def test_epilogues_are_fused(
    outputs: int, check: Compile, monkeypatch: pytest.MonkeyPatch, tvm: Any
) -> None:
    from mlc.schedules import winograd

    monkeypatch.setattr(winograd, "modelled_cycles", lambda _layer, m: 0 if m == outputs else 1)
    made = check(residual_block(size=7 + outputs))  # a model each: artifacts are cached
    assert algorithms(made.manifest) == [F2 if outputs == 2 else F4] * 2
    fused = [kernel["operators"] for kernel in made.manifest["kernels"].values()]
    assert ["mlc.conv2d_winograd", "add", "add", "nn.relu"] in fused
    assert ["mlc.conv2d_winograd", "add", "nn.relu"] in fused


def test_same_as_without_any_optimisation(compiled: Compile) -> None:
    fast, plain = (
        compiled(residual_block(32, size=24)),
        compiled(residual_block(32, size=24), opt_level=0),
    )
    assert algorithms(fast.manifest) == [F4, F4]
    assert algorithms(plain.manifest) == ["direct"]  # one kernel for both
    feed = fast.feed()
    assert_same(fast.run(feed)[0], plain.run(feed)[0])


def test_exact_refuses_it(check: Compile) -> None:
    made = check(residual_block(32, size=24), exact=True)
    assert made.manifest["exact"] is True
    assert set(algorithms(made.manifest)) == {"direct"}
    assert "winograd" not in made.manifest["passes"]
    assert "winograd" in {row.name for row in pipeline(3)}


def test_weights_are_transformed_before(load: Any, tvm: Any) -> None:
    """Of constants, when an artifact is opened: none is computed by a run."""
    from tvm import relay

    from mlc.schedules.winograd_op import recipe

    fused = optimize(
        load(residual_block(32, size=24)), tvm.target.Target("llvm -mcpu=x86-64-v4"), 3
    )
    layers = [
        call
        for call in kernels_of(fused.module)
        if calls_of({"main": call.op}, "mlc.conv2d_winograd")
    ]
    assert len(layers) == 2
    assert count_kernels(fused.module) == 4  # and the layout changed before and behind
    for layer in layers:
        (weight,) = [arg for arg in layer.args if len(arg.checked_type.shape) == 4]
        assert tuple(map(int, weight.checked_type.shape))[::2] == (36, 32)
        made = recipe(weight)
        assert made is not None
        assert made["shape"] == list(map(int, weight.checked_type.shape))
        (filters,) = weight.args
        assert isinstance(filters, relay.Constant)
        assert tuple(map(int, filters.checked_type.shape)) == (32, 32, 3, 3)


def stored_plainly(path: Path) -> Path:
    """Write an artifact again with what its recipes make, as versions before did; return its path."""
    opened = artifact.load(path)
    contents = artifact.Contents(
        manifest=opened.manifest,
        library=bytes(opened.members[artifact.LIBRARY]),
        graph=bytes(opened.members[artifact.GRAPH]),
        weights=list(opened.weights()),
    )
    artifact.save(contents, path.with_name("plain.mlc"))
    return path.with_name("plain.mlc")


def test_the_artifact_holds_the_filters(compiled: Compile) -> None:
    """It has the size of the model, and runs bit for bit as one that holds their transforms."""
    small = compiled(residual_block(32, size=24))
    assert small.manifest["format"] == artifact.MADE
    sizes = sorted(entry["nbytes"] for entry in small.manifest["weights"])
    assert sizes == [32 * 4, 32 * 4, *[32 * 32 * 9 * 4] * 2]
    large = Compiled(stored_plainly(small.path), small.manifest)
    manifest = artifact.read_manifest(large.path)
    assert manifest["format"] == artifact.FORMAT
    assert sum(entry["nbytes"] for entry in manifest["weights"]) == 256 + 2 * 36 * 32 * 32 * 4
    feed = small.feed()
    np.testing.assert_array_equal(small.run(feed)[0]["y"], large.run(feed)[0]["y"])


def test_layers_with_equal_filters_share_them(check: Compile) -> None:
    proto = residual_block(32, size=24)
    for tensor in proto.graph.initializer:
        if tensor.name == "w2":
            tensor.raw_data = next(t.raw_data for t in proto.graph.initializer if t.name == "w1")
    made = check(proto)
    assert sum("made" in entry for entry in made.manifest["weights"]) == 1


def test_transforms_for_another_kernel_are_refused(compiled: Compile) -> None:
    made = compiled(residual_block(32, size=24))
    weights = made.manifest["weights"]
    for entry in weights:
        if "made" in entry:
            entry["made"]["shape"][0] = 16
    artifact.rewrite_manifest(made.path, {"weights": weights})
    with pytest.raises(ArtifactError, match="cannot be set up"):
        sessions.open(made.path)


def kernels_of(module: Any) -> list[Any]:
    from tvm import relay

    found: list[Any] = []

    def visit(call: Any) -> None:
        if isinstance(call, relay.Call) and isinstance(call.op, relay.Function):
            found.append(call)

    relay.analysis.post_order_visit(module["main"], visit)
    return found


FALL_BACK = {
    "stride": one_conv(32, 32, strides=[2, 2]),
    "dilation": one_conv(32, 32, dilations=[2, 2]),
    "groups": one_conv(32, 32, group=2),
    "depthwise": one_conv(32, 32, group=32),
    "5x5": one_conv(32, 32, kernel=5),
    "few-channels": one_conv(3, 32),
    "odd-filters": one_conv(32, 20),
}


@pytest.mark.parametrize("name", FALL_BACK)
def test_what_stays_direct(name: str, check: Compile) -> None:
    assert algorithms(check(FALL_BACK[name]).manifest) == ["direct"]


def test_float64_stays_direct(compiled: Compile) -> None:
    weights = {"w": models.floats(32, 32, 3, 3).astype(np.float64)}
    nodes = [node("Conv", ["x", "w"], ["y"], "conv", pads=[1, 1, 1, 1])]
    proto = models.model(nodes, {"x": [1, 32, 8, 8]}, ["y"], weights)
    proto.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    proto.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    assert algorithms(compiled(proto).manifest) == ["direct"]


def test_weights_computed_at_run_time_stay_direct(check: Compile) -> None:
    nodes = [node("Conv", ["x", "w"], ["y"], "conv", pads=[1, 1, 1, 1])]
    proto = models.model(nodes, {"x": [1, 32, 8, 8], "w": [32, 32, 3, 3]}, ["y"])
    assert algorithms(check(proto).manifest) == ["direct"]


# --- the choice ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cpu", ["x86-64-v3", "x86-64-v4"])
@pytest.mark.parametrize(
    ("channels", "size", "outputs"), [(64, 56, 4), (128, 28, 4), (256, 14, 4), (512, 7, 0)]
)
def test_resnet_layers_by_default(
    channels: int, size: int, outputs: int, cpu: str, tvm: Any
) -> None:
    """At 7x7 F(4x4) has four tiles for 38 MB of weights: reading them takes what they save."""
    from mlc.schedules import winograd

    with tvm.target.Target(resolve(cpu).tvm):
        shape = (1, channels, size, size)
        layer = winograd.layer_of(SimpleNamespace(shape=shape), (1, 1, 1, 1), channels)
        assert winograd.suits(layer)
        assert winograd.pays(layer) is bool(outputs)
        assert winograd.default(layer)["outputs"] == (outputs or 2)


def lookup(costs: dict[str, float], devices: dict[str, str]) -> Callable[[str], Record | None]:
    """Records of the default config, by the beginning of the template's name."""

    def find(key: str) -> Record | None:
        for name, cost in costs.items():
            if key.startswith(f'["{name}'):
                return Record(
                    workload=key,
                    config={"index": FALLBACK, "code_hash": None, "entity": []},
                    target="llvm",
                    device=devices.get(name, "here"),
                    template_hash="",
                    costs=(cost,),
                    timestamp=0.0,
                    run="",
                )
        return None

    return find


@pytest.mark.parametrize(
    ("costs", "devices", "taken"),
    [
        ({"conv2d_winograd": 1.0, "conv2d_NCHWc": 2.0}, {}, True),
        ({"conv2d_winograd": 2.0, "conv2d_NCHWc": 1.0}, {}, False),
        ({"conv2d_winograd": 2.0, "conv2d_NCHWc": 1.0}, {"conv2d_NCHWc": "there"}, True),
        ({"conv2d_NCHWc": 1.0}, {}, True),
        ({}, {}, True),
    ],
    ids=["ours", "direct", "not-comparable", "one-only", "none"],
)
def test_records_of_both_decide(
    costs: dict[str, float], devices: dict[str, str], taken: bool, load: Any, tvm: Any
) -> None:
    from mlc.tune.dispatch import dispatch_context

    model = load(one_conv(32, 32))
    with dispatch_context(lookup(costs, devices)) as context:
        fused = optimize(model, tvm.target.Target("llvm -mcpu=x86-64-v4"), 3)
    assert bool(calls_of(fused.module, "mlc.conv2d_winograd")) is taken
    assert len(context.rivals) == 2


@pytest.mark.parametrize("exact", [False, True])
def test_a_layer_is_two_tasks(exact: bool, load: Any, tvm: Any) -> None:
    """The kernel that is compiled names one; the other is its rival. Without a choice there is one."""
    from mlc.codegen.kernels import Kernel
    from mlc.tune.dispatch import dispatch_context

    target = tvm.target.Target("llvm -mcpu=x86-64-v4")
    with dispatch_context(lambda _key: None) as context:
        optimize(load(one_conv(32, 48)), target, 3, exact=exact)
    tuned = next(iter(context.origin))  # the altered workload, for which a kernel would ask
    kernel = Kernel(
        symbol="k", operators=(), flops=100, workloads=(tuned,), seconds=0, cached=False, code=b""
    )
    tasks = tasks_of([kernel], {"k": 2}, context, {"k": 4.0})
    names = ["conv2d_winograd_mlc.x86", "conv2d_NCHWc.x86"]
    assert [task.template for task in tasks] == (names[1:] if exact else sorted(names))
    assert {(task.calls, task.share) for task in tasks} == {(2, 1.0)}
    by_name = {task.template: task for task in tasks}
    if not exact:
        assert [by_name[name].seconds for name in names] == [2.0, 0.0]  # the other was not timed
        assert [by_name[name].rival for name in names] == [by_name[n].key for n in names[::-1]]
        assert len(autotvm_task(by_name[names[0]].key, target).config_space) > 100


@pytest.mark.parametrize("broken", [False, True])
def test_tuning_compares_outputs(
    broken: bool, quick_target: str, tvm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F(2x2) against F(4x4), which want other weights; transformed wrongly, they disagree."""
    from tvm import autotvm
    from tvm.target import Target

    from mlc.schedules import winograd, winograd_weights
    from mlc.tune.compare import agree
    from mlc.tune.trial import Settings, Trial

    tensors = [("TENSOR", shape, "float32") for shape in ((1, 16, 9, 9), (32, 16, 3, 3))]
    args = [*tensors, (1, 1, 1, 1), 32, block_of(quick_target)]
    task = autotvm.task.create(winograd.TEMPLATE, args, Target(quick_target))
    settings = Settings(workers=1, threads=1, build_timeout=9, run_timeout=9, memory_bytes=1 << 30)
    trials = [Trial(task=task, index=index, settings=settings) for index in (0, 1)]
    assert [task.config_space.get(index)["outputs"].val for index in (0, 1)] == [2, 4]
    for trial in trials:
        trial.guard("build", trial.build)
    if broken:
        packed = winograd_weights.packed
        monkeypatch.setattr(
            winograd_weights, "packed", lambda w, to: packed(w * (1.01 if to[0] == 36 else 1), to)
        )
    checked = agree(*trials)
    assert checked["passed"] is not broken, checked["detail"]


def block_of(text: str) -> int:
    """Return the block of 32 channels for a target."""
    from tvm.target import Target

    from mlc.schedules import gemm, winograd

    with Target(text):
        return winograd.block(32, gemm.problem(1, 1, 1).lanes)
