"""Inputs from files and seeds."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from mlc.errors import RunError, UsageError
from mlc.model import TensorSpec
from mlc.runtime import inputs

X = TensorSpec(name="x", shape=(2, 3), dtype="float32")
Y = TensorSpec(name="input:0", shape=(), dtype="int64")
DTYPES = ["float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16",
          "uint32", "uint64", "bool"]  # fmt: skip


def spec(dtype: str, shape: tuple[int, ...] = (50, 7), name: str = "x") -> TensorSpec:
    return TensorSpec(name=name, shape=shape, dtype=dtype)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a.npy (2 x 3), s.npy (a scalar) and both.npz."""
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", np.arange(6, dtype=np.float32).reshape(2, 3))
    np.save("s.npy", np.array(5))
    np.savez("both.npz", **{"x": np.ones((2, 3), np.float32), "input:0": np.array(7)})
    return tmp_path


# --- read ----------------------------------------------------------------------------------------


def test_one_file_for_the_only_input(folder: Path) -> None:
    found = inputs.read(["a.npy"], [X])
    assert list(found) == ["x"]
    np.testing.assert_array_equal(found["x"], np.arange(6, dtype=np.float32).reshape(2, 3))


@pytest.mark.parametrize("name", ["x", "input:0", "a=b", "größe"])
def test_a_file_by_name(name: str, folder: Path) -> None:
    found = inputs.read([f"{name}=a.npy", "other=s.npy"], [X, Y])
    assert found[name].shape == (2, 3)
    assert found["other"].shape == ()


def test_an_archive_holds_arrays_by_name(folder: Path) -> None:
    found = inputs.read(["both.npz"], [X, Y])
    assert {name: array.shape for name, array in found.items()} == {"x": (2, 3), "input:0": ()}
    np.testing.assert_array_equal(found["input:0"], 7)
    np.savez_compressed("packed.npz", x=np.zeros(3))
    assert inputs.read(["packed.npz"], [X])["x"].shape == (3,)


def test_later_options_win(folder: Path) -> None:
    assert inputs.read(["both.npz", "x=s.npy"], [X, Y])["x"].shape == ()
    assert inputs.read([], [X]) == {}


def test_fortran_order_and_byte_order_are_understood(folder: Path) -> None:
    array = np.asfortranarray(np.arange(6.0).reshape(2, 3)).astype(">f4")
    np.save("f.npy", array)
    np.testing.assert_array_equal(inputs.read(["f.npy"], [X])["x"], array)


def test_which_input_must_be_said_where_there_are_several(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"has 2 inputs, say which one a\.npy is for") as caught:
        inputs.read(["a.npy"], [X, Y])
    assert caught.value.hint == "write --input NAME=a.npy; inputs: x, input:0"
    with pytest.raises(UsageError, match="has 0 inputs"):
        inputs.read(["a.npy"], [])


@pytest.mark.parametrize("option", ["", "x", "x=", "a.txt", "x=a.txt", "x=both.npz", "npy", "x:a"])
def test_other_forms_are_refused(option: str, folder: Path) -> None:
    with pytest.raises(UsageError, match="is not understood") as caught:
        inputs.read([option], [X])
    assert "--input name=x.npy" in (caught.value.hint or "")


@pytest.mark.parametrize("name", ["none.npy", "none.npz"])
def test_a_missing_file_is_named(name: str, folder: Path) -> None:
    with pytest.raises(RunError, match=f"cannot read {name}: No such file"):
        inputs.read([name], [X])


def test_a_folder_is_no_array(folder: Path) -> None:
    for name in ("d.npy", "d.npz"):
        (folder / name).mkdir()
        with pytest.raises(RunError, match="Is a directory"):
            inputs.read([name], [X])


class Trap:
    """Unpickling it leaves a file behind."""

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, ("sprung",)


@pytest.mark.parametrize("archive", [False, True])
def test_nothing_is_unpickled(archive: bool, folder: Path) -> None:
    array = np.array([Trap()], object)
    if archive:
        np.savez("trap.npz", x=array)
    else:
        np.save("trap.npy", array, allow_pickle=True)
    with pytest.raises(RunError, match="it holds Python objects, not plain arrays"):
        inputs.read(["trap.npz" if archive else "trap.npy"], [X])
    assert not (folder / "sprung").exists()


def header(shape: str, descr: str = "'<f4'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"
    text = text.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no array at all",
        header("(2, 3)") + bytes(23),
        header("(2, 3)")[:30],
        header("(1000000000000, 1000)") + bytes(24),  # claims petabytes
        header("(-1, 3)") + bytes(24),
        header("(2, 3)", "__import__('os').mkdir('sprung')") + bytes(24),
        header("(2, 3)", "'nonsense'") + bytes(24),
        b"PK\x03\x04" + bytes(60),
        bytes(200),
    ],
    ids=[
        "empty",
        "text",
        "short",
        "cut-header",
        "huge",
        "negative",
        "code",
        "dtype",
        "zip",
        "zeros",
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_a_damaged_file_is_refused(data: bytes, suffix: str, folder: Path) -> None:
    path = folder / f"damaged{suffix}"
    path.write_bytes(data)
    with pytest.raises(RunError, match="cannot read damaged") as caught:
        inputs.read([path.name], [X])
    assert "numpy.save" in (caught.value.hint or "")
    assert not (folder / "sprung").exists()


def test_an_archive_under_the_wrong_name_is_refused(folder: Path) -> None:
    (folder / "both.npz").rename("both.npy")
    (folder / "a.npy").rename("a.npz")
    for name in ("both.npy", "a.npz"):
        with pytest.raises(RunError, match="cannot read"):
            inputs.read([name], [X])


def test_a_damaged_archive_is_refused_wherever_it_is(folder: Path) -> None:
    data = (folder / "both.npz").read_bytes()
    good = inputs.read(["both.npz"], [X, Y])
    for position in range(0, len(data), 7):
        (folder / "both.npz").write_bytes(
            data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :]
        )
        try:
            found = inputs.read(["both.npz"], [X, Y])
        except RunError:
            continue
        # Only dates, and names in the directory, may differ unseen.
        assert sorted(a.tobytes() for a in found.values()) == sorted(
            a.tobytes() for a in good.values()
        )


def test_a_file_beyond_the_bound_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "MAX_INPUT_FILE_BYTES", 100)
    for name in ("a.npy", "both.npz"):
        with pytest.raises(RunError, match="is larger than"):
            inputs.read([name], [X])


# --- refuse_nan ----------------------------------------------------------------------------------


def test_nan_and_infinity_are_refused_and_counted() -> None:
    good = {"i": np.array([1]), "b": np.array(True), "f": np.array([1.0]), "e": np.zeros((0, 3))}
    inputs.refuse_nan(good)
    bad = np.array([[np.nan, np.inf], [1.0, -np.inf]], np.float16)
    with pytest.raises(RunError, match="input 'z' holds 3 NaN or infinite") as caught:
        inputs.refuse_nan({**good, "z": bad})
    assert "--allow-nan" in (caught.value.hint or "")


# --- random --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (3, 5, 7), (0, 4)])
def test_random_inputs_fit_the_model(dtype: str, shape: tuple[int, ...]) -> None:
    array = inputs.random([spec(dtype, shape)], 3)["x"]
    assert isinstance(array, np.ndarray)
    assert (array.shape, array.dtype.name) == (shape, dtype)
    inputs.refuse_nan({"x": array})


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_seeds_give_equal_inputs(dtype: str) -> None:
    first, again, other = (inputs.random([spec(dtype)], seed)["x"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_an_input_depends_on_its_own_name_only() -> None:
    """Another order, or one input given by file, changes nothing for the others."""
    a, b = spec("float32", name="a"), spec("float32", name="b")
    both = inputs.random([a, b], 0)
    np.testing.assert_array_equal(both["b"], inputs.random([b], 0)["b"])
    assert not np.array_equal(both["a"], both["b"])


def test_floats_are_normal() -> None:
    array = inputs.random([spec("float64", (100, 101))], 0)["x"]
    assert abs(array.mean()) < 0.05
    assert abs(array.std() - 1) < 0.05


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "uint8", "uint64"])
def test_integers_stay_below_their_bound(dtype: str) -> None:
    def values(bounds: dict[str, int] | None) -> set[int]:
        return set(inputs.random([spec(dtype)], 0, bounds)["x"].reshape(-1).tolist())

    assert values(None) == {0, 1}
    assert values({"other": 100}) == {0, 1}
    assert values({"x": 5}) == {0, 1, 2, 3, 4}
    assert values({"x": 1}) == values({"x": 0}) == {0}


def test_a_bound_beyond_the_type_is_cut() -> None:
    for dtype in ("int8", "uint8", "int16"):
        array = inputs.random([spec(dtype, (999,))], 0, {"x": 1 << 40})["x"]
        assert array.min() >= 0
        assert array.max() <= np.iinfo(dtype).max
        assert array.max() > np.iinfo(dtype).max // 2


def test_booleans_take_both_values() -> None:
    assert set(inputs.random([spec("bool")], 0)["x"].reshape(-1).tolist()) == {True, False}


def test_names_and_paths_may_hold_equals_signs(folder: Path) -> None:
    (folder / "k=v").mkdir()
    np.save("k=v/x.npy", np.full(2, 7.0))
    odd = TensorSpec(name="a=b", shape=(2,), dtype="float32")
    assert inputs.read(["k=v/x.npy"], [X])["x"][0] == 7
    assert inputs.read(["x=k=v/x.npy"], [X, Y])["x"][0] == 7
    assert inputs.read(["a=b=k=v/x.npy"], [odd, Y])["a=b"][0] == 7
