"""Integer products in float32: the same integers, and only where all sums are exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mlc import build
from mlc.passes.whole import take_whole
from mlc.target import resolve
from tests.compiler.conftest import calls_of, typed


def extremes(*shape: int, kind: str) -> np.ndarray:
    """Return values at both ends of the range, mostly at the upper one."""
    bounds = np.iinfo(kind)
    return np.random.default_rng(0).choice([bounds.min, bounds.max, bounds.max], shape).astype(kind)


def wide(name: str, shape: tuple[int, ...], kind: str, zero: int = 0) -> tuple[Any, Any]:
    from tvm import relay

    x = relay.var(name, shape=shape, dtype=kind)
    return x, relay.cast(x, "int32") - relay.const(zero, "int32")


def conv(groups: int) -> Any:
    from tvm import relay

    x, data = wide("x", (1, 10, 7, 9), "uint8", 3)
    weight = relay.const(extremes(5, 10 // groups, 3, 3, kind="int8").astype("int32"))
    body = relay.nn.conv2d(
        data, weight, channels=5, kernel_size=(3, 3), groups=groups, padding=(1, 0, 1, 2),
        strides=(2, 1), out_dtype="int32",
    )  # fmt: skip
    return typed(relay.Function([x], body))


def attention(inner: int, zero: int = 0) -> Any:
    from tvm import relay

    x, left = wide("x", (2, 3, inner), "uint8", zero)
    y, right = wide("y", (2, inner, 5), "int8", 1)
    body = relay.nn.batch_matmul(left, relay.transpose(right, (0, 2, 1)), out_dtype="int32")
    return typed(relay.Function([x, y], body * relay.const(3, "int32")))


def odd_dense() -> Any:
    from tvm import relay

    x, data = wide("x", (3, 17), "int8", -128)
    weight = relay.const(extremes(7, 17, kind="uint8").astype("int32"))
    total = relay.nn.dense(data, weight, out_dtype="int32")
    body = relay.cast(total, "float32") * relay.const(0.5, "float32")
    return typed(relay.Function([x], body))


# 255 * 129 * 510 is the last below 2^24.
TAKEN = {
    "padded convolution of five filters": lambda: conv(1),
    "both computed, the last sums that fit": lambda: attention(510),
    "dense, read as floats": odd_dense,
}


@pytest.mark.parametrize("name", TAKEN)
def test_the_integers_are_the_same(name: str, tvm: Any, interpret: Any) -> None:
    before = TAKEN[name]()
    after = take_whole(before)
    products = [call for kind in ("nn.conv2d", "nn.dense", "nn.batch_matmul")
                for call in calls_of(after, kind)]  # fmt: skip
    assert [str(call.checked_type.dtype) for call in products] == ["float32"]
    feed = [
        extremes(*map(int, p.checked_type.shape), kind=str(p.checked_type.dtype))
        for p in before["main"].params
    ]
    with build.tvm_target(resolve("llvm"), 3):
        np.testing.assert_array_equal(interpret(after, *feed)[0], interpret(before, *feed)[0])


def test_floats_are_read_without_a_way_over_integers(tvm: Any) -> None:
    casts = calls_of(take_whole(odd_dense()), "cast")
    assert [str(call.checked_type.dtype) for call in casts].count("int32") == 1  # of the data


def narrow() -> Any:
    """What `take_narrow` makes where the instruction wants 16 bits: its own kernel is faster."""
    from tvm import relay

    x = relay.var("x", shape=(1, 4, 5, 5), dtype="uint8")
    weight = relay.const(extremes(4, 4, 1, 1, kind="int8").astype("int16"))
    data = relay.cast(x, "int16")
    body = relay.nn.conv2d(data, weight, channels=4, kernel_size=(1, 1), out_dtype="int32")
    return typed(relay.Function([x], body))


def differences(levels: int) -> Any:
    """Each the difference of the one before from itself: 2^levels ways to the input."""
    from tvm import relay

    x, data = wide("x", (3, 17), "uint8")
    for _ in range(levels):
        data = relay.subtract(data, data)
    weight = relay.const(extremes(7, 17, kind="int8").astype("int32"))
    return typed(relay.Function([x], relay.nn.dense(data, weight, out_dtype="int32")))


LEFT = {
    "operands that an instruction takes": narrow,
    "bounds that are far to seek": lambda: differences(40),
    "groups": lambda: conv(5),
    "a term too many": lambda: attention(511),
    "a zero point that makes values larger": lambda: attention(510, 256),
}


@pytest.mark.parametrize("name", LEFT)
def test_sums_beyond_what_floats_count_are_left_alone(name: str, tvm: Any) -> None:
    module = LEFT[name]()
    assert take_whole(module).same_as(module)
