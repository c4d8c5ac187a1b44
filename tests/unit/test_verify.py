"""`compare`: when two outputs count as equal, and what is said about them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from mlc.errors import MismatchError, ModelError, RunError
from mlc.runtime.verify import (
    TOLERANCES,
    OutputCheck,
    Reference,
    Verification,
    compare,
    require,
)
from tests import models

Array = np.ndarray
FLOATS = sorted(TOLERANCES)
INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]


def check(ours: Array, reference: Array) -> OutputCheck:
    return compare("y", ours, reference)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (2, 1, 7), (0, 4)])
def test_equal_arrays_pass(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    found = check(array.copy(), array)
    assert found.passed
    assert (found.max_abs, found.max_rel) == (0.0, 0.0)
    assert found.cosine == pytest.approx(1.0)
    assert (found.name, found.dtype) == ("y", dtype)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("reference", [1.0, -0.5, 0.0, 40.0])
@pytest.mark.parametrize("dtype", FLOATS)
def test_the_tolerance_holds_just_inside_and_not_just_outside(
    dtype: str, reference: float, sign: int
) -> None:
    tolerance = TOLERANCES[dtype]
    allowed = tolerance.relative * abs(reference) + tolerance.absolute * max(1, abs(reference))
    base = np.array([reference], dtype)
    inside = np.array([reference + sign * allowed * 0.9], dtype)
    outside = np.array([reference + sign * allowed * 1.1], dtype)
    assert inside[0] != base[0] != outside[0]
    assert check(inside, base).passed
    found = check(outside, base)
    assert not found.passed
    assert found.max_abs == pytest.approx(allowed * 1.1, rel=0.05)


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_absolute_part_grows_with_the_largest_value(dtype: str) -> None:
    absolute = TOLERANCES[dtype].absolute
    reference = np.array([100.0, 0.0], dtype)
    small = np.array([0.5, 0.0], dtype)
    assert check(np.array([100, 90 * absolute], dtype), reference).passed
    assert not check(np.array([100, 110 * absolute], dtype), reference).passed
    # Below 1 it does not shrink, and the scale is the reference's, not ours.
    assert check(np.array([0.5, 0.9 * absolute], dtype), small).passed
    assert not check(np.array([0.5, 1.1 * absolute], dtype), small).passed
    assert not check(np.array([100.0, 0.0], dtype), small).passed


def test_one_wrong_element_among_many_fails() -> None:
    reference = np.random.default_rng(0).standard_normal((3, 101)).astype(np.float32)
    ours = reference.copy()
    ours[2, 100] += 0.5
    found = check(ours, reference)
    assert not found.passed
    assert found.max_abs == pytest.approx(0.5, rel=1e-5)
    assert found.cosine > 0.99  # cosine alone would not see it


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_agree_exactly(dtype: str) -> None:
    reference = np.array([0, 1, np.iinfo(dtype).max], dtype)
    assert check(reference.copy(), reference).passed
    ours = reference.copy()
    ours[2] -= 1
    assert not check(ours, reference).passed


def test_large_integers_are_not_compared_as_floats() -> None:
    a, b = np.array([2**53], np.int64), np.array([2**53 + 1], np.int64)
    assert not check(a, b).passed


def test_unsigned_differences_do_not_wrap() -> None:
    found = check(np.array([0], np.uint8), np.array([255], np.uint8))
    assert not found.passed
    assert found.max_abs == 255.0


def test_booleans_agree_exactly() -> None:
    truth = np.array([True, False, True])
    assert check(truth.copy(), truth).passed
    found = check(~truth, truth)
    assert not found.passed
    assert found.max_abs == 1.0


@pytest.mark.parametrize("dtype", FLOATS)
def test_nan_and_infinity_must_stand_at_the_same_places(dtype: str) -> None:
    reference = np.array([np.nan, np.inf, -np.inf, 2.0], dtype)
    found = check(reference.copy(), reference)
    assert found.passed
    assert (found.nan, found.inf, found.nan_reference, found.inf_reference) == (1, 2, 1, 2)
    assert found.max_abs == 0.0
    for wrong in ([np.nan, np.inf, np.inf, 2.0], [np.inf, np.nan, -np.inf, 2.0],
                  [np.nan, 9.0, -np.inf, 2.0], [0.0, np.inf, -np.inf, 2.0],
                  [np.nan, np.inf, -np.inf, np.nan], [np.nan, np.inf, -np.inf, np.inf],
                  [np.nan, np.inf, -np.inf, 3.0]):  # fmt: skip
        assert not check(np.array(wrong, dtype), reference).passed, wrong


def test_finite_values_are_compared_beside_infinite_ones() -> None:
    reference = np.array([np.inf, 1.0], np.float32)
    assert not check(np.array([np.inf, 1.1], np.float32), reference).passed
    # An infinity does not make the tolerance infinite.
    assert check(np.array([np.inf, 1.0005], np.float32), reference).passed


def test_values_that_overflowed_say_so() -> None:
    found = check(np.array([np.inf, 1], np.float16), np.array([6e4, 1], np.float16))
    assert not found.passed
    assert found.max_abs == np.inf
    assert (found.inf, found.inf_reference) == (1, 0)


@pytest.mark.parametrize(
    ("ours", "reference"),
    [
        (np.zeros((2, 3), np.float32), np.zeros((3, 2), np.float32)),
        (np.zeros((1, 3), np.float32), np.zeros(3, np.float32)),
        (np.zeros((), np.float32), np.zeros(1, np.float32)),
        (np.zeros(3, np.float32), np.zeros(3, np.float64)),
        (np.zeros(3, np.int32), np.zeros(3, np.int64)),
        (np.zeros(0, np.float32), np.zeros((0, 1), np.float32)),
    ],
)
def test_another_shape_or_dtype_is_a_mismatch(ours: Array, reference: Array) -> None:
    found = check(ours, reference)
    assert not found.passed
    assert found.max_abs == np.inf


def test_opposite_vectors_have_cosine_minus_one() -> None:
    array = np.array([3.0, 4.0], np.float32)
    assert check(-array, array).cosine == pytest.approx(-1.0)
    assert check(np.zeros(2, np.float32), np.zeros(2, np.float32)).cosine == 1.0
    assert check(array, np.zeros(2, np.float32)).cosine == 0.0


def test_a_failed_verification_is_required_with_every_output() -> None:
    good = check(np.ones(2, np.float32), np.ones(2, np.float32))
    bad = compare("z", np.ones(2, np.float32), np.zeros(2, np.float32))
    passed = Verification(reference="ort", seed=3, rounds=1, outputs=(good,))
    failed = Verification(reference="ort", seed=3, rounds=1, outputs=(good, bad))
    require(passed, "it")
    assert passed.to_json()["passed"] is True
    assert failed.to_json()["passed"] is False
    with pytest.raises(MismatchError) as caught:
        require(failed, "the compiled model")
    assert "the compiled model differs from ort (seed 3)" in caught.value.message
    assert "y (float32): ok" in caught.value.message
    assert "z (float32): MISMATCH, max abs 1.00e+00" in caught.value.message
    assert "-O1" in (caught.value.hint or "")


def test_the_reference_runs_the_original_model(tmp_path: Path) -> None:
    weights = {"w": models.floats(3, 5)}
    proto = models.model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": [2, 3]}, ["y"], weights
    )
    reference = Reference(models.save(proto, tmp_path))
    x = models.floats(2, 3, seed=1)
    np.testing.assert_allclose(reference.run({"x": x})["y"], x @ weights["w"], rtol=1e-6)
    with pytest.raises(RunError, match="cannot run on these inputs"):
        reference.run({"x": x.astype(np.float64)})


def test_a_model_that_the_reference_cannot_load_is_named(tmp_path: Path) -> None:
    path = tmp_path / "no.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"cannot load .*no\.onnx") as caught:
        Reference(path)
    assert "--no-verify" in (caught.value.hint or "")
