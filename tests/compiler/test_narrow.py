"""Arm: quantised products of 8-bit operands, equal to those in 32 bits, and their template."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mlc import build
from mlc.target import resolve
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


@pytest.mark.parametrize("name", TAKEN)
def test_the_sums_are_the_same(name: str, tvm: Any, interpret: Any) -> None:
    before = TAKEN[name]()
    after = narrowed(before)
    (call,) = calls_of(after, "nn.conv2d")
    assert [str(arg.checked_type.dtype) for arg in call.args] == ["int8", "int8"]
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
    "padding of a computed zero point": lambda: conv(
        "int8", (1, 4, 4, 4), (4, 4, 3, 3), "computed", padding=(1, 1, 1, 1)),
}  # fmt: skip


@pytest.mark.parametrize("name", LEFT)
def test_other_products_are_left_alone(name: str, tvm: Any) -> None:
    module = LEFT[name]()
    assert narrowed(module).same_as(module)


def test_weights_of_nine_bits_are_left_alone(tvm: Any) -> None:
    from tvm import relay

    params, data = operand("int8", (1, 4), 0)
    weight = relay.const(np.full((4, 4), 128, "int32"))
    module = typed(relay.Function(params, relay.nn.dense(data, weight, out_dtype="int32")))
    assert narrowed(module).same_as(module)


@pytest.mark.parametrize("target", ["x86-64-v3", "armv7"])
def test_only_64_bit_arm_takes_it(target: str, tvm: Any) -> None:
    module = TAKEN["dense"]()
    assert narrowed(module, target).same_as(module)


@pytest.mark.parametrize("width", [1, 2, 7, 13, 17, 28, 56, 112])
@pytest.mark.parametrize("filters", [4, 8, 20, 64])
def test_default_tiles_leave_registers_and_waste_less_than_a_step(
    width: int, filters: int, tvm: Any
) -> None:
    from mlc.schedules import narrow

    data = tvm.te.placeholder((1, 12, 3, width), "int8")
    weight = tvm.te.placeholder((filters, 12, 1, 1), "int8")
    layer = narrow.layer_of(data, weight, (1, 1), (1, 1))
    columns, blocks = narrow.default(layer)
    assert layer.registers(columns, blocks) <= 20
    assert layer.outputs[1] % blocks == 0
    steps = -(-width // columns)
    assert steps * (columns - 1) < width


@pytest.mark.parametrize(
    ("target", "instruction"), [("rpi5", "sdot"), ("graviton3", "sdot"), ("rpi4", "smull")]
)
def test_the_instruction_is_the_cpus_and_sums_stay_in_registers(
    target: str, instruction: str, tvm: Any
) -> None:
    from mlc.schedules import narrow

    data = tvm.te.placeholder((1, 8, 30, 30, 8), "int8")
    weight = tvm.te.placeholder((8, 8, 3, 3, 2, 8, 4), "int8")
    with build.tvm_target(resolve(target), 3):
        out = narrow.narrow(data, weight, (1, 1), (1, 1))
        s = narrow.schedule_narrow([out])
        text = tvm.build(s, [data, weight, out]).get_source("asm")
    assert text.count(f"\t{instruction}\t") >= 14
    assert "[sp" not in inner_loop(text, instruction)


def inner_loop(assembly: str, instruction: str) -> str:
    """Return the code from the label before the first of an instruction to the branch behind it."""
    lines = assembly.splitlines()
    at = next(k for k, line in enumerate(lines) if f"\t{instruction}\t" in line)
    first = next(k for k in range(at, 0, -1) if lines[k].endswith(":"))
    last = next(k for k in range(at, len(lines)) if lines[k].startswith("\tb."))
    return "\n".join(lines[first:last])
