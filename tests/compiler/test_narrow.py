"""Quantised products by narrow instructions, equal to those in 32 bits, and their templates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mlc import build
from mlc.cpu import host_cpu
from mlc.target import resolve, runs_on
from tests.compiler.conftest import calls_of, typed


def integers(*shape: int, kind: str = "int8", seed: int = 0) -> np.ndarray:
    bounds = np.iinfo(kind)
    return np.random.default_rng(seed).integers(bounds.min, bounds.max + 1, shape, kind)


def operand(kind: str, shape: tuple[int, ...], zero: Any) -> tuple[list[Any], Any]:
    """Return the parameters, and cast(x) or cast(x) - zero; a zero of "computed" is a parameter."""
    from tvm import relay

    x = relay.var("x", shape=shape, dtype=kind)
    wide = relay.cast(x, "int32")
    if zero is None:
        return [x], wide
    if zero == "computed":
        z = relay.var("z", shape=(), dtype="int32")
        return [x, z], wide - z
    return [x], wide - relay.const(zero, "int32")


def conv(
    kind: str, shape: tuple[int, ...], filters: tuple[int, ...], zero: Any, **attributes: Any
) -> Any:
    from tvm import relay

    params, data = operand(kind, shape, zero)
    weight = relay.const(integers(*filters, seed=1).astype("int32"))
    body = relay.nn.conv2d(
        data, weight, channels=filters[0], kernel_size=filters[2:], out_dtype="int32", **attributes
    )
    return typed(relay.Function(params, body))


def dense(kind: str, shape: tuple[int, int], units: int, zero: Any) -> Any:
    from tvm import relay

    params, data = operand(kind, shape, zero)
    weight = relay.const(integers(units, shape[1], seed=1).astype("int32"))
    return typed(relay.Function(params, relay.nn.dense(data, weight, out_dtype="int32")))


# By dtypes of the operands: sdot, vpdpbusd, vpmaddwd.
KINDS = {"rpi5": ("int8", "int8"), "znver4": ("uint8", "int8"), "x86-64-v3": ("int16", "int16")}


def narrowed(module: Any, target: str = "rpi5") -> Any:
    from mlc.passes.narrow import take_narrow

    with build.tvm_target(resolve(target), 3):
        return take_narrow(module)


TAKEN = {
    "no zero point": lambda: conv("int8", (1, 8, 5, 6), (4, 8, 3, 3), None),
    "padding is the zero point": lambda: conv(
        "int8", (2, 4, 7, 5), (8, 4, 3, 2), -11, padding=(1, 0, 2, 1), strides=(2, 1)),
    "unsigned, dilated, three channels": lambda: conv(
        "uint8", (1, 3, 9, 9), (12, 3, 3, 3), 117, padding=(2, 2, 2, 2), dilation=(2, 2)),
    "unsigned, no zero point": lambda: conv("uint8", (1, 5, 4, 4), (4, 5, 1, 1), None),
    "unsigned, padded with zeros": lambda: conv(
        "uint8", (1, 4, 4, 4), (4, 4, 3, 3), None, padding=(1, 1, 1, 1)),
    "computed zero point": lambda: conv("uint8", (1, 4, 4, 4), (4, 4, 3, 3), "computed"),
    "dense": lambda: dense("int8", (1, 12), 8, 5),
    "dense, rows, odd sum": lambda: dense("uint8", (3, 9), 4, 200),
    "dense, computed zero point": lambda: dense("uint8", (3, 7), 4, "computed"),
}  # fmt: skip


@pytest.mark.parametrize("target", KINDS)
@pytest.mark.parametrize("name", TAKEN)
def test_the_sums_are_the_same(name: str, target: str, tvm: Any, interpret: Any) -> None:
    before = TAKEN[name]()
    after = narrowed(before, target)
    (call,) = calls_of(after, "nn.conv2d")
    assert tuple(str(arg.checked_type.dtype) for arg in call.args) == KINDS[target]
    assert not any(map(int, call.attrs.padding))
    feed = [
        integers(*map(int, p.checked_type.shape), kind=str(p.checked_type.dtype))
        if p.name_hint == "x"
        else np.array(93, "int32")
        for p in before["main"].params
    ]
    np.testing.assert_array_equal(interpret(after, *feed)[0], interpret(before, *feed)[0])


LEFT = {
    "filters no multiple of 4": lambda: conv("int8", (1, 4, 4, 4), (6, 4, 1, 1), 3),
    "groups": lambda: conv("int8", (1, 8, 4, 4), (8, 2, 1, 1), 3, groups=4),
    "padding of a zero point that is no code": lambda: conv(
        "int8", (1, 4, 4, 4), (4, 4, 3, 3), 40000, padding=(1, 1, 1, 1)),
    "padding of a computed zero point": lambda: conv(
        "int8", (1, 4, 4, 4), (4, 4, 3, 3), "computed", padding=(1, 1, 1, 1)),
}  # fmt: skip


@pytest.mark.parametrize("target", KINDS)
@pytest.mark.parametrize("name", LEFT)
def test_other_products_are_left_alone(name: str, target: str, tvm: Any) -> None:
    module = LEFT[name]()
    assert narrowed(module, target).same_as(module)


@pytest.mark.parametrize("target", KINDS)
def test_weights_of_nine_bits_only_where_the_operands_are_wider(target: str, tvm: Any) -> None:
    from tvm import relay

    params, data = operand("int8", (1, 4), 0)
    weight = relay.const(np.full((4, 4), 128, "int32"))
    module = typed(relay.Function(params, relay.nn.dense(data, weight, out_dtype="int32")))
    assert narrowed(module, target).same_as(module) == (KINDS[target][1] == "int8")


@pytest.mark.parametrize("target", ["llvm -mcpu=x86-64", "armv7"])
def test_cpus_without_the_instructions_do_not_take_it(target: str, tvm: Any) -> None:
    module = TAKEN["dense"]()
    assert narrowed(module, target).same_as(module)


# image, filters, strides, dilation: blocks of 16, 8 and 4, tails of rows, images of one pixel
LAYERS = {
    "3x3, blocks of 16": ((1, 32, 7, 30), (48, 32, 3, 3), (1, 1), (1, 1)),
    "strides, blocks of 8 and 4": ((2, 4, 9, 17), (24, 4, 3, 3), (2, 1), (1, 1)),
    "dilated, blocks of 4": ((1, 12, 9, 11), (20, 12, 3, 2), (1, 2), (2, 3)),
    "1x1": ((2, 24, 5, 13), (64, 24, 1, 1), (1, 1), (1, 1)),
    "one pixel": ((1, 64, 1, 1), (16, 64, 1, 1), (1, 1), (1, 1)),
    "three rows of a dense layer": ((3, 36, 1, 1), (40, 36, 1, 1), (1, 1), (1, 1)),
    "a prime count of rows": ((37, 8, 1, 1), (48, 8, 1, 1), (1, 1), (1, 1)),
}


@pytest.mark.parametrize("target", ["znver4", "x86-64-v4", "x86-64-v3", "x86-64-v2"])
@pytest.mark.parametrize("name", LAYERS)
def test_kernels_are_exact_at_the_ends_of_the_range(
    name: str, target: str, tvm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 8 bits, the largest and the smallest values next to each other: sums that saturate differ."""
    from mlc.schedules import dot, narrow

    if not runs_on(resolve(target), host_cpu()):
        pytest.skip(f"this machine cannot run {target}")
    image, filters, strides, dilation = LAYERS[name]
    with build.tvm_target(resolve(target), 3):
        instruction = dot.of_target()
    assert instruction is not None
    code = "uint8" if instruction.data == "uint8" else "int8"
    bounds = np.iinfo(code)
    rng = np.random.default_rng(0)
    data = rng.choice([bounds.min, bounds.max, bounds.max], image).astype(instruction.data)
    weight = rng.choice([-128, 127, 127], filters).astype(instruction.weight)
    want = sums(data, weight, strides, dilation)
    np.testing.assert_array_equal(computed(target, data, weight, strides, dilation), want)
    monkeypatch.setattr(narrow, "default", lambda _layer: [3, 1])
    np.testing.assert_array_equal(computed(target, data, weight, strides, dilation), want)


def computed(
    target: str, data: np.ndarray, weight: np.ndarray, strides: Any, dilation: Any
) -> np.ndarray:
    """Return what the template computes of plain tensors with the default tile."""
    import tvm
    from tvm.autotvm.task.space import FallbackConfigEntity

    from mlc.codegen import kernels
    from mlc.schedules import narrow

    x, w = (tvm.te.placeholder(a.shape, str(a.dtype)) for a in (data, weight))
    with build.tvm_target(resolve(target), 3), kernels.pass_context(3):
        config = FallbackConfigEntity()
        out = narrow.convolution(config, x, w, strides, dilation)
        built = tvm.build(narrow.schedule(config, [out]), [x, w, out])
    result = tvm.nd.empty([int(size) for size in out.shape], "int32")
    built(tvm.nd.array(data), tvm.nd.array(weight), result)
    return np.asarray(result.numpy())


def sums(data: np.ndarray, weight: np.ndarray, strides: Any, dilation: Any) -> np.ndarray:
    """Return the convolution in 64 bits."""
    (down, across), (far, wide) = strides, dilation
    taps = weight.shape[2:]
    high = (data.shape[2] - (taps[0] - 1) * far - 1) // down + 1
    broad = (data.shape[3] - (taps[1] - 1) * wide - 1) // across + 1
    total = np.zeros((data.shape[0], weight.shape[0], high, broad), np.int64)
    for i, j in np.ndindex(taps):
        rows = slice(i * far, i * far + (high - 1) * down + 1, down)
        columns = slice(j * wide, j * wide + (broad - 1) * across + 1, across)
        part = data[:, :, rows, columns].astype(np.int64)
        total += np.einsum("nchw,kc->nkhw", part, weight[:, :, i, j].astype(np.int64))
    return total


@pytest.mark.parametrize("target", ["rpi5", "znver4", "x86-64-v3"])
@pytest.mark.parametrize("width", [1, 2, 7, 13, 17, 28, 56, 112])
@pytest.mark.parametrize("filters", [4, 8, 20, 64])
def test_default_tiles_leave_registers_and_waste_less_than_a_step(
    width: int, filters: int, target: str, tvm: Any
) -> None:
    from mlc.schedules import narrow

    data = tvm.te.placeholder((1, 12, 3, width), "int8")
    weight = tvm.te.placeholder((filters, 12, 1, 1), "int8")
    with build.tvm_target(resolve(target), 3):
        layer = narrow.layer_of(data, weight, (1, 1), (1, 1))
    columns, blocks = narrow.default(layer)
    assert layer.registers(columns, blocks) <= layer.dot.default
    assert layer.outputs[1] % blocks == 0
    steps = -(-width // columns)
    assert steps * (columns - 1) < width


INSTRUCTIONS = {
    "rpi5": "sdot", "graviton3": "sdot", "rpi4": "smull",
    "znver4": "vpdpbusd", "cascadelake": "vpdpbusd", "llvm -mcpu=alderlake": "{vex}\tvpdpbusd",
    "x86-64-v4": "vpmaddwd", "x86-64-v3": "vpmaddwd", "x86-64-v2": "pmaddwd",
}  # fmt: skip


@pytest.mark.parametrize("target", INSTRUCTIONS)
def test_the_instruction_is_the_cpus_and_sums_stay_in_registers(target: str, tvm: Any) -> None:
    from mlc.codegen import kernels
    from mlc.schedules import narrow

    instruction = INSTRUCTIONS[target]
    with build.tvm_target(resolve(target), 3), kernels.pass_context(3):
        plain = tvm.te.placeholder((1, 64, 30, 30)), tvm.te.placeholder((64, 64, 3, 3))
        layer = narrow.layer_of(*plain, (1, 1), (1, 1))
        data = tvm.te.placeholder(layer.image, layer.dot.data)
        weight = tvm.te.placeholder(layer.weights, layer.dot.weight)
        out = narrow.COMPUTE[layer.dot.template](data, weight, (1, 1), (1, 1))
        s = narrow.SCHEDULE[layer.dot.template]([out])
        text = tvm.build(s, [data, weight, out]).get_source("asm")
    assert text.count(f"\t{instruction}\t") >= 8
    loop = inner_loop(text, instruction)
    # LLVM adds up products of pmaddwd in another order, and puts some sums aside for that.
    few = loop.count("pmaddwd") // 4
    assert loop.count("[sp") + loop.count("(%rsp") <= few


def inner_loop(assembly: str, instruction: str) -> str:
    """Return the code from the label before the first of an instruction to the branch behind it."""
    lines = assembly.splitlines()
    at = next(k for k, line in enumerate(lines) if f"\t{instruction}\t" in line)
    first = next(k for k in range(at, 0, -1) if lines[k].endswith(":"))
    last = next(k for k in range(at, len(lines)) if lines[k].startswith(("\tb.", "\tj")))
    return "\n".join(lines[first:last])
