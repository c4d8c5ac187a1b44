"""From fused graph to code: buffers never collide, kernels come from the cache, bytes are stable."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mlc import artifact, build, driver, isolate
from mlc.cache import Cache
from mlc.codegen import kernels as compiler
from mlc.codegen.graph import Plan, plan
from mlc.codegen.kernels import Job, Kernel, Namer, Settings, compile_all
from mlc.codegen.storage import nbytes
from mlc.errors import BuildError, UsageError
from mlc.events import Progress, ignore
from mlc.frontend import load as imports
from mlc.frontend import onnx_file
from mlc.options import CompileOptions
from mlc.passes.run import optimize
from mlc.target import resolve
from mlc.tune.dispatch import dispatch_context, read_best
from tests import models
from tests.compiler.conftest import assert_same, reference, typed

node = helper.make_node
Array = np.ndarray

# --- the plan ------------------------------------------------------------------------------------


def planned(model: Any, tvm: Any, level: int = 3) -> Plan:
    """Return the plan of a model (`Model` or typed Relay module); no kernel is compiled."""
    from tvm import relay

    if hasattr(model, "signature"):
        fused = optimize(model, tvm.target.Target("llvm -mcpu=x86-64-v3"), level).module
    else:
        fused = typed(relay.transform.FuseOps(0)(model))
    names: dict[Any, str] = {}
    return plan(fused["main"], lambda function: names.setdefault(function, f"k{len(names)}"))


def replay(found: Plan) -> None:
    """Run a plan on labels instead of numbers; fail where a value is read that is gone.

    A second opinion on buffer sharing that knows nothing of how the planner decides: every buffer
    holds the label of the value written to it last. What a kernel reads, and what the model returns
    at the end, must be there; a kernel must not write what it reads; weights and inputs stay.
    """
    graph = found.graph
    nodes, rows = graph["nodes"], graph["node_row_ptr"]
    buffers = graph["attrs"]["storage_id"][1]
    shapes, dtypes = graph["attrs"]["shape"][1], graph["attrs"]["dltype"][1]
    memory: dict[int, Any] = {}
    label: dict[int, Any] = {}  # by row: what its value is called
    fixed: dict[int, Any] = {}
    for position, entry in enumerate(nodes):
        own = range(rows[position], rows[position + 1])
        if entry["op"] == "null":
            (row,) = own
            assert buffers[row] not in memory, "an input or weight shares its buffer"
            label[row] = memory[buffers[row]] = fixed[buffers[row]] = ("given", position)
            continue
        read = [rows[source] + index for source, index, _ in entry["inputs"]]
        for row in read:
            assert memory[buffers[row]] == label[row], f"{entry['name']} reads what is gone"
        if entry["attrs"]["func_name"] == "__nop":
            (row,), (source,) = own, read
            assert label[source][0] != "given", "a reshaped input keeps its kernel"
            assert buffers[row] == buffers[source]
            assert nbytes(tuple(shapes[row]), dtypes[row]) == nbytes(
                tuple(shapes[source]), dtypes[source]
            )
            label[row] = label[source]
            continue
        assert not {buffers[row] for row in own} & {buffers[row] for row in read}, entry["name"]
        assert len({buffers[row] for row in own}) == len(own)
        assert not {buffers[row] for row in own} & set(fixed), "a kernel writes an input or weight"
        for row in own:
            label[row] = memory[buffers[row]] = (position, row)
    for source, index, _ in graph["heads"]:
        row = rows[source] + index
        assert memory[buffers[row]] == label[row], "a result is overwritten before the end"
    assert {k: memory[k] for k in fixed} == fixed
    need = {k: 0 for k in memory if k not in fixed}
    for row, buffer in enumerate(buffers):
        if buffer in need:
            need[buffer] = max(need[buffer], nbytes(tuple(shapes[row]), dtypes[row]))
    assert found.buffer_bytes == sum(need.values())


def random_module(seed: int, size: int) -> Any:
    """Return a typed module with a random graph: shapes change, values split, join and are shared."""
    from tvm import IRModule, relay

    pick = random.Random(seed)
    inputs = [relay.var(f"x{k}", shape=(2, 6)) for k in range(3)]
    values: list[Any] = list(inputs)

    def flat(value: Any) -> Any:
        return relay.reshape(value, (2, 6))

    for _ in range(size):
        a, b = (pick.choice(values[-6:]) for _ in range(2))
        values.append(
            pick.choice(
                [
                    lambda a=a, b=b: relay.add(a, b),
                    lambda a=a: relay.reshape(relay.nn.relu(relay.reshape(a, (3, 4))), (2, 6)),
                    lambda a=a: flat(relay.reshape(a, (12,))),
                    lambda a=a: relay.TupleGetItem(
                        relay.split(a, 2, 1).astuple(), pick.randrange(2)
                    ),
                    lambda a=a, b=b: relay.concatenate([a, b], 0),
                    lambda a=a: relay.transpose(a),
                    lambda a=a: relay.multiply(
                        a, relay.const(models.floats(1, seed=pick.randrange(3)))
                    ),
                ]
            )()
        )
        # Only values of the first shape are read again, so that everything fits together.
        module = typed(IRModule.from_expr(relay.Function(inputs, values[-1])))
        shape = [int(s) for s in module["main"].ret_type.shape]
        if shape != [2, 6]:
            last = values.pop()
            rows = relay.sum(last, [0], True) if len(shape) == 2 else last
            values.append(relay.add(relay.broadcast_to(relay.sum(rows), (2, 6)), inputs[0]))
    results = [pick.choice(values) for _ in range(pick.randrange(1, 4))]
    body = results[0] if len(results) == 1 else relay.Tuple(results)
    return typed(IRModule.from_expr(relay.Function(inputs, body)))


@pytest.mark.parametrize("seed", range(6))
def test_no_two_live_buffers_overlap_in_random_graphs(seed: int, tvm: Any) -> None:
    replay(planned(random_module(seed, 14), tvm))


@pytest.fixture
def load(tmp_path: Path, tvm: Any) -> Callable[[onnx.ModelProto], Any]:
    def load(proto: onnx.ModelProto) -> Any:
        return imports.load(onnx_file.read(models.save(proto, tmp_path)), (), ignore)

    return load


def chain(length: int) -> onnx.ModelProto:
    """Softmaxes, which fuse with nothing: one kernel each."""
    nodes = [node("Softmax", [f"x{k}"], [f"x{k + 1}"], axis=k % 2) for k in range(length)]
    return models.model(nodes, {"x0": [3, 5]}, [f"x{length}"])


@pytest.mark.parametrize("level", [0, 3])
def test_a_network_is_planned_without_collisions(level: int, load: Any, tvm: Any) -> None:
    found = planned(load(models.conv_net(8, 9)), tvm, level)
    replay(found)
    assert sum(found.calls.values()) >= len(found.kernels) > 3


def test_a_chain_needs_two_buffers(load: Any, tvm: Any) -> None:
    found = planned(load(chain(20)), tvm)
    replay(found)
    assert sum(found.calls.values()) == 20
    assert found.buffer_bytes == 2 * 4 * 15


def test_a_value_that_is_read_late_is_kept(load: Any, tvm: Any) -> None:
    nodes = [*chain(6).graph.node, node("Add", ["x6", "x1"], ["y"])]
    found = planned(load(models.model(nodes, {"x0": [3, 5]}, ["y"])), tvm)
    replay(found)
    assert found.buffer_bytes == 3 * 4 * 15


def test_the_replay_sees_a_collision(load: Any, tvm: Any) -> None:
    """The judge of the tests above is no good if it never says no."""
    nodes = [*chain(6).graph.node, node("Add", ["x6", "x1"], ["y"])]
    found = planned(load(models.model(nodes, {"x0": [3, 5]}, ["y"])), tvm)
    buffers = found.graph["attrs"]["storage_id"][1]
    computed = [k for k, n in enumerate(found.graph["nodes"]) if n["op"] != "null"]
    rows = [found.graph["node_row_ptr"][k] for k in computed]
    late = next(row for row in rows[2:] if buffers[row] != buffers[rows[0]])
    good = buffers[late]
    buffers[late] = buffers[rows[0]]
    with pytest.raises(AssertionError, match=r"reads what is gone"):
        replay(found)
    buffers[late] = good
    replay(found)


def test_a_reshape_moves_nothing_and_shares_its_buffer(load: Any, tvm: Any) -> None:
    nodes = [
        node("Softmax", ["x"], ["s"]),
        node("Reshape", ["s", "to"], ["r"]),
        node("Softmax", ["r"], ["y"]),
    ]
    proto = models.model(nodes, {"x": [3, 4]}, ["y"], {"to": np.array([2, 6])})
    found = planned(load(proto), tvm)
    replay(found)
    names = [n["attrs"]["func_name"] for n in found.graph["nodes"] if n["op"] != "null"]
    assert names[1] == "__nop"
    assert "__nop" not in found.kernels
    assert sum(found.calls.values()) == 2


def test_equal_constants_are_stored_once(tvm: Any) -> None:
    from tvm import IRModule, relay

    x = relay.var("x", shape=(3, 5))
    array = models.floats(3, 5)
    other_shape = relay.reshape(relay.const(array.reshape(5, 3)), (3, 5))
    body = relay.add(relay.add(x, relay.const(array)), relay.exp(relay.const(array.copy())))
    body = relay.subtract(relay.add(body, relay.const(array + 1)), other_shape)
    found = planned(typed(IRModule.from_expr(relay.Function([x], body))), tvm)
    replay(found)
    assert len(found.weights) == 3
    stored = {weight.array.tobytes() + bytes(weight.array.shape) for weight in found.weights}
    assert len(stored) == 3
    assert len({weight.storage for weight in found.weights}) == 3


def test_equal_constants_are_one_in_the_file_too(check: Any) -> None:
    square = models.floats(37, 37)
    nodes = [
        node("MatMul", ["x", "a"], ["h"]),
        node("Softmax", ["h"], ["s"]),
        node("MatMul", ["s", "b"], ["y"]),
    ]
    proto = models.model(nodes, {"x": [2, 37]}, ["y"], {"a": square, "b": square.copy()})
    made = check(proto, opt_level=2)
    large = [w for w in made.manifest["weights"] if w["nbytes"] == square.nbytes]
    assert len(large) == 1


def test_what_depends_on_values_is_refused(tvm: Any) -> None:
    from tvm import IRModule, relay

    x = relay.var("x", shape=(3,), dtype="bool")
    module = typed(IRModule.from_expr(relay.Function([x], relay.argwhere(x))))
    with pytest.raises(BuildError, match="shape depends on the input's values"):
        planned(module, tvm)


def test_control_flow_is_refused(tvm: Any) -> None:
    from tvm import IRModule, relay

    c, x = relay.var("c", shape=(), dtype="bool"), relay.var("x", shape=(3,))
    module = IRModule.from_expr(relay.Function([c, x], relay.If(c, relay.exp(x), relay.abs(x))))
    with pytest.raises(BuildError, match="control flow"):
        planned(typed(module), tvm)


# --- unusual outputs, through the whole path -----------------------------------------------------


def outputs_model(*nodes: Any, outputs: list[str], **more: Any) -> onnx.ModelProto:
    return models.model(nodes, {"x": [3, 4]}, outputs, more.pop("weights", None), **more)


SHAPE = {"weights": {"to": np.array([2, 6]), "w": models.floats(4, 5)}}
UNUSUAL = {
    "several": outputs_model(
        node("MatMul", ["x", "w"], ["a"]), node("Relu", ["a"], ["b"]), node("Softmax", ["a"], ["c"]),
        outputs=["c", "b", "a"], **SHAPE,
    ),
    "also-intermediate": outputs_model(
        node("Softmax", ["x"], ["a"]), node("MatMul", ["a", "w"], ["b"]), node("Softmax", ["b"], ["c"]),
        node("Neg", ["c"], ["d"]), outputs=["d", "a"], **SHAPE,
    ),
    "input-itself": outputs_model(
        node("Identity", ["x"], ["y"]), node("Neg", ["x"], ["z"]), outputs=["z", "y"]
    ),
    "only-the-input": outputs_model(node("Identity", ["x"], ["y"]), outputs=["y"]),
    "constant": outputs_model(node("Neg", ["x"], ["z"]), node("Identity", ["w"], ["y"]),
                              outputs=["y", "z"], **SHAPE),
    "only-a-constant": outputs_model(node("Neg", ["w"], ["y"]), outputs=["y"], **SHAPE),
    "reshape-of-input": outputs_model(node("Reshape", ["x", "to"], ["y"]), outputs=["y"], **SHAPE),
    "reshape-and-value": outputs_model(
        node("Softmax", ["x"], ["s"]), node("Reshape", ["s", "to"], ["y"]), outputs=["y", "s"], **SHAPE
    ),
    "twice": outputs_model(node("Neg", ["x"], ["a"]), node("Identity", ["a"], ["b"]), outputs=["a", "b"]),
    "part-of-a-split": outputs_model(
        node("Split", ["x"], ["a", "b"], axis=1), node("Neg", ["b"], ["c"]), outputs=["c", "b", "a"]
    ),
    "integers": outputs_model(
        node("ArgMax", ["x"], ["i"], axis=1), node("Cast", ["x"], ["j"], to=TensorProto.INT32),
        outputs=["i", "j"], types={"i": TensorProto.INT64, "j": TensorProto.INT32},
    ),
}  # fmt: skip


@pytest.mark.parametrize("level", [0, 3])
@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_outputs(name: str, level: int, compiled: Any) -> None:
    proto = UNUSUAL[name]
    made = compiled(proto, opt_level=level)
    feeds = [{"x": models.floats(3, 4, seed=seed)} for seed in (1, 2)]
    for ours, feed in zip(made.run(*feeds, feeds[0])[:2], feeds, strict=True):
        assert_same(ours, reference(proto, feed))
    first, _, again = made.run(*feeds, feeds[0])
    assert_same(again, first)


def test_a_model_may_have_no_input(check: Any) -> None:
    constant = helper.make_node("Constant", [], ["c"], value_floats=[1.0, -2.0, 3.0])
    check(models.model([constant, node("Neg", ["c"], ["y"])], {}, ["y"]), feed={})


# --- kernels and their cache ---------------------------------------------------------------------


def settings_for(tvm: Any, lookup: Any = None, level: int = 3) -> Settings:
    """Settings for a fixed CPU, and an LLVM that hurries: nothing here is run but its records."""
    chosen = resolve(f"{resolve('llvm').tvm} -opt-level=0")
    dispatch = dispatch_context(lookup or (lambda _workload: None))
    return Settings(target=build.tvm_target(chosen, level), level=level, dispatch=dispatch)


def jobs_of(model: Any, settings: Settings) -> list[Job]:
    namer = Namer(settings)
    with settings.dispatch:
        fused = optimize(model, settings.target, settings.level)
    found = plan(fused.module["main"], namer)
    return [namer.jobs[symbol] for symbol in found.kernels]


def cached(made: list[Kernel]) -> list[bool]:
    return [kernel.cached for kernel in made]


def test_a_second_compilation_comes_from_the_cache(load: Any, tvm: Any, tmp_path: Path) -> None:
    settings, cache = settings_for(tvm), Cache(tmp_path / "cache")
    jobs = jobs_of(load(models.conv_net(8, 9)), settings)
    events: list[Any] = []
    first = compile_all(jobs, settings, cache, 1, events.append)
    assert cached(first) == [False] * len(jobs)
    assert [(e.done, e.total) for e in events] == [(k + 1, len(jobs)) for k in range(len(jobs))]
    assert all(isinstance(event, Progress) for event in events)
    second = compile_all(jobs, settings, Cache(tmp_path / "cache"), 1, pytest.fail)
    assert cached(second) == [True] * len(jobs)
    strip = {"cached": True, "seconds": 0.0}
    assert [dataclasses.replace(k, **strip) for k in first] == second
    assert [kernel.symbol for kernel in second] == [job.symbol for job in jobs]


def test_what_was_compiled_before_in_this_process_changes_nothing(load: Any, tvm: Any) -> None:
    """TVM keeps what it lowered: asked again, it would not ask for configs, nor heed new ones."""
    made = []
    for _ in range(2):
        settings = settings_for(tvm)
        jobs = jobs_of(load(models.conv_net(8, 9)), settings)
        made.append(compile_all(jobs, settings, Cache(None), 1, ignore))
    assert [kernel.workloads for kernel in made[1]] == [kernel.workloads for kernel in made[0]]
    assert sum(bool(kernel.workloads) for kernel in made[1]) >= 3


def test_a_damaged_cache_entry_is_compiled_again(load: Any, tvm: Any, tmp_path: Path) -> None:
    settings, cache = settings_for(tvm), Cache(tmp_path / "cache")
    jobs = jobs_of(load(chain(3)), settings)
    first = compile_all(jobs, settings, cache, 1, ignore)
    victim = next((tmp_path / "cache" / "code").glob("*/*"))
    victim.write_bytes(victim.read_bytes()[:-1])
    again = compile_all(jobs, settings, cache, 1, ignore)
    assert cached(again).count(False) == 1
    assert [kernel.code for kernel in again] == [kernel.code for kernel in first]


def test_levels_and_targets_share_no_kernels(load: Any, tvm: Any) -> None:
    model = load(chain(2))
    other = dataclasses.replace(settings_for(tvm), target=tvm.target.Target("llvm -mcpu=x86-64-v2"))
    keys = [
        {job.key for job in jobs_of(model, settings)}
        for settings in (settings_for(tvm), settings_for(tvm, level=2), other)
    ]
    assert not keys[0] & keys[1]
    assert not keys[0] & keys[2]


def test_parallel_workers_make_the_same_code(load: Any, tvm: Any) -> None:
    settings = settings_for(tvm)
    jobs = jobs_of(load(models.conv_net(8, 9)), settings)
    alone = compile_all(jobs, settings, Cache(None), 1, ignore)
    together = compile_all(jobs, settings, Cache(None), 2, ignore)
    assert [kernel.code for kernel in together] == [kernel.code for kernel in alone]
    assert [kernel.symbol for kernel in together] == [kernel.symbol for kernel in alone]
    assert cached(together) == [False] * len(jobs)


def test_compiling_twice_makes_the_same_bytes(compiled: Any) -> None:
    proto = models.conv_net(7, 9)
    first, second = (compiled(proto, cache=False).path.read_bytes() for _ in range(2))
    assert first == second


def test_the_library_has_nothing_for_debuggers(compiled: Any) -> None:
    """It was a third of its size."""
    whole = artifact.load(compiled(models.conv_net(7, 9)).path)
    code = bytes(whole.members[artifact.LIBRARY])
    assert b"debug_info" not in code
    assert b".symtab" in code  # names of kernels, for profilers


def test_another_process_makes_the_same_bytes(
    compiled: Any, quick_target: str, tmp_path: Path
) -> None:
    """Neither the order of what was compiled before, nor hash seeds, nor paths leave a trace."""
    proto = models.conv_net(7, 9)
    ours = compiled(proto, cache=False).path
    model, logs = tmp_path / "there" / "model.onnx", tmp_path / "there" / "logs"
    logs.mkdir(parents=True)
    model.write_bytes(proto.SerializeToString())
    options = CompileOptions(
        model=str(model),
        output=str(model.with_suffix(".mlc")),
        target=quick_target,
        verify=False,
        cache=False,
        jobs=2,
        logs=str(logs),
    )
    report = isolate.call("mlc.driver:compile_model", options)
    assert Path(report["path"]).read_bytes() == ours.read_bytes()


def test_a_kernel_that_cannot_be_compiled_is_named(load: Any, tvm: Any, monkeypatch: Any) -> None:
    settings = settings_for(tvm)
    jobs = jobs_of(load(chain(2)), settings)

    def fail(*_args: Any) -> None:
        raise compiler.failed(jobs[1], ValueError("Check failed: (x) is false: no schedule"))

    monkeypatch.setattr(compiler, "build", fail)
    for workers in (1, 2):
        with pytest.raises(
            BuildError, match=r"kernel mlc_.*cannot be compiled: Check failed"
        ) as caught:
            compile_all(jobs, settings, Cache(None), workers, ignore)
        assert jobs[1].symbol in caught.value.message


def test_a_crash_of_a_worker_is_an_error_that_names_candidates(
    load: Any, tvm: Any, monkeypatch: Any
) -> None:
    import os

    settings = settings_for(tvm)
    jobs = jobs_of(load(chain(2)), settings)
    monkeypatch.setattr(compiler, "build", lambda *_args: os._exit(139))
    with pytest.raises(BuildError, match="a compiler process crashed") as caught:
        compile_all(jobs, settings, Cache(None), 2, ignore)
    assert any(job.symbol in caught.value.message for job in jobs)


# --- tuning records ------------------------------------------------------------------------------


def record_line(workload: str, target: str, index: int, cost: float, error: int = 0) -> str:
    """Return an AutoTVM record as AutoTVM itself writes it, for a config of the template's space."""
    from tvm import autotvm

    name, *args = json.loads(workload)
    task = autotvm.task.create(name, tuples(args), target)
    config = task.config_space.get(index % len(task.config_space))
    measured = autotvm.MeasureInput(task.target, task, config)
    result = autotvm.MeasureResult((cost,), error, cost, 1.0)
    return str(autotvm.record.encode(measured, result))


def tuples(value: Any) -> Any:
    return tuple(tuples(item) for item in value) if isinstance(value, list) else value


def two_layers() -> onnx.ModelProto:
    weights = {
        "w": models.floats(16, 8, 3, 3, seed=1, scale=0.2),
        "v": models.floats(16, 16, 1, 1, seed=2, scale=0.2),
        "d": models.floats(16, 24, seed=3),
    }
    nodes = [
        node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]), node("Relu", ["c"], ["r"]),
        node("Conv", ["r", "v"], ["e"]), node("GlobalAveragePool", ["e"], ["g"]),
        node("Flatten", ["g"], ["f"]), node("MatMul", ["f", "d"], ["y"]),
    ]  # fmt: skip
    return models.model(nodes, {"x": [1, 8, 9, 9]}, ["y"], weights)


def template(workload: str) -> str:
    return str(json.loads(workload)[0])


def asked_by(made: list[Kernel]) -> dict[str, list[str]]:
    """Return the workloads that kernels asked for, by template."""
    found: dict[str, list[str]] = {}
    for workload in dict.fromkeys(key for kernel in made for key in kernel.workloads):
        found.setdefault(template(workload), []).append(workload)
    return found


def test_only_kernels_whose_configs_changed_are_compiled_again(
    load: Any, tvm: Any, tmp_path: Path
) -> None:
    model, cache = load(two_layers()), Cache(tmp_path / "cache")
    settings = settings_for(tvm)
    first = compile_all(jobs_of(load(two_layers()), settings), settings, cache, 1, ignore)
    dense = settings.dispatch.tuned(asked_by(first)["dense_mlc.x86"])
    assert len(dense) == 1
    assert len(asked_by(first)["conv2d_NCHWc.x86"]) >= 2

    log = tmp_path / "tuned.log"
    mcpu = resolve("llvm").mcpu
    log.write_text(record_line(dense[0], f"llvm -mcpu={mcpu}", 1, 1e-3) + "\n")
    best = read_best(log, mcpu)
    assert list(best.records) == dense
    again = settings_for(tvm, best.records.get)
    jobs = jobs_of(model, again)
    second = compile_all(jobs, again, cache, 1, ignore)
    fresh = [kernel for kernel in second if not kernel.cached]
    tuned = [k for k in second if set(again.dispatch.tuned(k.workloads)) & set(dense)]
    assert fresh
    assert len(fresh) < len(second)
    # The packed weight's own layout follows the config, so its kernel may be new; no conv is.
    assert {kernel.symbol for kernel in tuned} <= {kernel.symbol for kernel in fresh}
    assert all("conv2d" not in kernel.symbol for kernel in fresh)
    third = compile_all(jobs, again, cache, 1, pytest.fail)
    assert cached(third) == [True] * len(jobs)


def test_a_changed_record_changes_the_code_of_its_kernel_alone(
    load: Any, tvm: Any, tmp_path: Path
) -> None:
    """Two configs of one layout (only how wide a row is computed at once differs)."""
    from tvm import autotvm

    cache = Cache(tmp_path / "cache")
    settings = settings_for(tvm)
    jobs = jobs_of(load(two_layers()), settings)
    first = compile_all(jobs, settings, cache, 1, ignore)
    blocked = asked_by(first)["conv2d_NCHWc.x86"][-1]
    name, *args = json.loads(blocked)
    space = autotvm.task.create(name, tuples(args), settings.target).config_space
    used = settings.dispatch.known.get(blocked) or settings.dispatch.fallbacks[blocked]
    fits = [
        config
        for config in (space.get(k) for k in range(len(space)))
        if all(config[n].size[-1] == used[n].size[-1] for n in ("tile_ic", "tile_oc"))
        and config["tile_ow"].size[-1] != used["tile_ow"].size[-1]
    ]
    changed = settings_for(tvm)
    changed.dispatch.known.update(settings.dispatch.known)
    changed.dispatch.fallbacks.update(settings.dispatch.fallbacks)
    changed.dispatch.known[blocked] = fits[0]
    second = compile_all(jobs, changed, cache, 1, ignore)
    fresh = [kernel.symbol for kernel in second if not kernel.cached]
    assert fresh == [kernel.symbol for kernel in first if blocked in kernel.workloads]
    before = {kernel.symbol: kernel.code for kernel in first}
    for kernel in second:
        assert (kernel.code != before[kernel.symbol]) == (kernel.symbol in fresh)


def test_results_stay_right_with_records(compiled: Any, tmp_path: Path, quick_target: str) -> None:
    proto = two_layers()
    plain = compiled(proto)
    assert plain.manifest["tuning"]["share_of_flops"] == {
        "tuned": 0.0, "other_device": 0.0, "fallback": 1.0,
    }  # fmt: skip
    target = resolve(quick_target)
    built = driver.build_model(
        CompileOptions(model="", target=quick_target, jobs=1), target,
        onnx_file.read(plain.path.with_suffix(".onnx")), Cache(None), lambda _key: None, ignore,
    )  # fmt: skip
    workloads = built.dispatch.tuned([w for k in built.library.kernels for w in k.workloads])
    for seed in range(2):
        lines = [
            record_line(w, f"llvm -mcpu={target.mcpu}", 7 * seed + k + 3, 1e-3)
            for k, w in enumerate(workloads)
        ]
        log = tmp_path / f"tuned{seed}.log"
        log.write_text("\n".join(lines) + "\n")
        made = compiled(proto, records=str(log))
        assert made.manifest["tuning"]["share_of_flops"]["tuned"] == 1.0
        feed = made.feed()
        assert_same(made.run(feed)[0], reference(proto, feed))
    assert made.path.read_bytes() != plain.path.read_bytes()


@pytest.fixture
def dense_workload(load: Any, tvm: Any) -> str:
    settings = settings_for(tvm)
    jobs = jobs_of(load(two_layers()), settings)
    made = compile_all([j for j in jobs if "dense" in j.symbol], settings, Cache(None), 1, ignore)
    return str(settings.dispatch.tuned(asked_by(made)["dense_mlc.x86"])[0])


def test_the_fastest_record_that_fits_is_taken(dense_workload: str, tmp_path: Path) -> None:
    lines = [
        record_line(dense_workload, "llvm -mcpu=znver4", 1, 3e-3),
        record_line(dense_workload, "llvm -mcpu=znver4", 2, 1e-3),
        record_line(dense_workload, "llvm -mcpu=znver4", 3, 2e-3),
        record_line(dense_workload, "llvm -mcpu=skylake", 0, 1e-9),
        record_line(dense_workload, "llvm", 0, 1e-9),
        record_line(dense_workload, "llvm -mcpu=znver4", 0, 1e-9, error=4),
        "",
        "{} no record",
        '{"input": 3}',
        record_line(dense_workload, "llvm -mcpu=znver4", 0, 1e-9)[:-20],  # torn off
    ]
    log = tmp_path / "log"
    log.write_text("\n".join(lines), encoding="utf-8")
    best = read_best(log, "znver4")
    assert (best.other_cpu, best.failed, best.damaged) == (2, 1, 3)
    (record,) = best.records.values()
    assert (record.index, record.cost) == (2, 1e-3)
    assert record.workload == dense_workload
    assert read_best(log, "haswell").records == {}


def test_costs_that_no_run_has_do_not_count(dense_workload: str, tmp_path: Path) -> None:
    good = record_line(dense_workload, "llvm -mcpu=znver4", 1, 1e-3)
    log = tmp_path / "log"
    for cost in ("NaN", "Infinity", "-1.0", "0.0"):
        bad = good.replace('"result": [[0.001]', f'"result": [[{cost}]')
        assert bad != good
        log.write_text(f"{bad}\n{good}\n")
        (record,) = read_best(log, "znver4").records.values()
        assert record.cost == 1e-3


def test_a_log_without_records_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read tuning records .*none\.log: No such file"):
        read_best(tmp_path / "none.log", "znver4")
    with pytest.raises(UsageError, match="Is a directory"):
        read_best(tmp_path, "znver4")
    log = tmp_path / "log"
    log.write_bytes(b"\xff\xfe\x00\nno record\n")
    with pytest.raises(UsageError, match=r"holds no AutoTVM records \(2 other lines\)"):
        read_best(log, "znver4")
    log.write_text("")
    assert read_best(log, "znver4").records == {}


def test_a_missing_log_stops_a_compilation_early(compiled: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read tuning records"):
        compiled(chain(1), records=str(tmp_path / "none.log"))
    assert not list(tmp_path.glob("*.mlc"))
