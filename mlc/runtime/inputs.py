"""Inputs for a run: from files, or seeded random ones that fit the model."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc.errors import RunError, UsageError
from mlc.options import MAX_INPUT_FILE_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mlc.model import TensorSpec

Array = np.ndarray[Any, Any]


def read(options: Sequence[str], specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """Return the arrays that `--input` options name.

    Each is `name=file.npy`, `file.npy` (for a model with one input) or `file.npz` (arrays by
    input name). Both names and paths may hold `=`. Nothing in the files is unpickled.

    Raises:
        UsageError: an option has none of these forms.
        RunError: a file is missing, too large, or holds no plain arrays.
    """
    arrays: dict[str, Array] = {}
    for option in options:
        name, equals, file = _split(option, specs)
        if file.endswith(".npz") and not equals:
            arrays.update(_load_npz(Path(file)))
        elif file.endswith(".npy") and equals:
            arrays[name] = _load_npy(Path(file))
        elif file.endswith(".npy"):
            if len(specs) != 1:
                listing = ", ".join(spec.name for spec in specs)
                raise UsageError(
                    f"the model has {len(specs)} inputs, say which one {file} is for",
                    f"write --input NAME={file}; inputs: {listing}",
                )
            arrays[specs[0].name] = _load_npy(Path(file))
        else:
            raise UsageError(
                f"--input {option!r} is not understood",
                "write `--input x.npy`, `--input name=x.npy` or `--input inputs.npz`",
            )
    return arrays


def _split(option: str, specs: Sequence[TensorSpec]) -> tuple[str, str, str]:
    """Return name, equals sign and path; without a name, the first two are empty."""
    known = [spec.name for spec in specs if option.startswith(f"{spec.name}=")]
    if known:
        name = max(known, key=len)
        return name, "=", option[len(name) + 1 :]
    if Path(option).is_file():
        return "", "", option
    return option.rpartition("=")


def refuse_nan(arrays: Mapping[str, Array]) -> None:
    """Raise RunError when an input holds NaN or infinity."""
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            count = int(np.count_nonzero(~np.isfinite(array)))
            raise RunError(
                f"input {name!r} holds {count} NaN or infinite value(s)",
                "clean the data, or pass --allow-nan if that is meant",
            )


def random(
    specs: Sequence[TensorSpec], seed: int, bounds: Mapping[str, int] | None = None
) -> dict[str, Array]:
    """Return seeded random inputs: normal floats, integers in [0, bound), random booleans.

    Args:
        specs: the inputs of the model.
        seed: equal seeds give equal arrays, input by input.
        bounds: exclusive upper bound of integer inputs by name (indices must stay inside their
            tables); 2 where it is not known.
    """
    arrays = {}
    for spec in specs:
        generator = np.random.default_rng([seed, zlib.crc32(spec.name.encode())])
        if spec.dtype == "bfloat16":
            import ml_dtypes  # noqa: F401 - gives numpy the name; onnx brings it

        dtype = np.dtype(spec.dtype)
        if dtype.kind == "f" or spec.dtype == "bfloat16":
            arrays[spec.name] = generator.standard_normal(spec.shape).astype(dtype)
        elif dtype.kind == "b":
            arrays[spec.name] = generator.integers(0, 2, spec.shape).astype(bool)
        else:
            high = min((bounds or {}).get(spec.name, 2), np.iinfo(dtype).max)
            arrays[spec.name] = generator.integers(0, max(1, high), spec.shape).astype(dtype)
    return arrays


def _load_npy(path: Path) -> Array:
    _check_size(path)
    try:
        # Mapped and copied: numpy before 2.3 reads a header with a size of -1 as "to the end".
        return np.array(np.lib.format.open_memmap(path, mode="r"))
    except (OSError, ValueError, EOFError, MemoryError) as error:
        raise RunError(f"cannot read {path}: {_why(error)}", "save it with numpy.save") from None


def _load_npz(path: Path) -> dict[str, Array]:
    _check_size(path)
    try:
        with path.open("rb") as file, np.lib.npyio.NpzFile(file) as archive:
            return {name: np.asarray(archive[name]) for name in archive.files}
    except Exception as error:  # noqa: BLE001 - zipfile, zlib and numpy each raise their own
        raise RunError(f"cannot read {path}: {_why(error)}", "save it with numpy.savez") from None


def _check_size(path: Path) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from None
    if size > MAX_INPUT_FILE_BYTES:
        raise RunError(f"{path} is larger than {MAX_INPUT_FILE_BYTES >> 30} GiB")


def _why(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return (
        "it holds Python objects, not plain arrays"
        if "Python objects" in text or "pickle" in text
        else text
    )
