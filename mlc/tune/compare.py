"""Whether a candidate computes what another kernel of its task does.

A tuned kernel wants its arguments packed, in blocks that its config chooses. So logical inputs are
drawn, packed for each kernel, and the outputs are unpacked before they are compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mlc.passes.fold import relayout
from mlc.runtime.verify import compare
from mlc.tune.place import random_values
from mlc.tune.trial import shape_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlc.tune.trial import Trial

Array = np.ndarray[Any, Any]

# Templates whose outputs can be compared: the logical layouts of the workload's tensors, in its
# order, then of the output. A kernel may want blocks split off the axes: see `_BLOCKED`.
LAYOUTS: dict[str, tuple[str, ...]] = {
    "conv2d_NCHWc.x86": ("NCHW", "OIHW", "NCHW"),
    "depthwise_conv2d_NCHWc.x86": ("NCHW", "OIHW", "NCHW"),
    "depthwise_conv2d_mlc.x86": ("NCHW", "OIHW", "NCHW"),
    "conv2d_1x1_mlc.x86": ("NCHW", "OIHW", "NCHW"),
    "conv2d_direct_mlc.x86": ("NCHW", "OIHW", "NCHW"),
    "conv2d_narrow_mlc.x86": ("NCHW", "OIHW", "NCHW"),
    "conv2d_narrow_mlc.arm": ("NCHW", "OIHW", "NCHW"),
    "dense_pack.x86": ("MK", "NK", "MN"),
    "dense_nopack.x86": ("MK", "NK", "MN"),
    "batch_matmul.x86": ("BMK", "BNK", "BMN"),
    "dense_mlc.x86": ("MK", "NK", "MN"),
    "batch_matmul_mlc.x86": ("BMK", "BKN", "BMN"),
    "attention_mlc.x86": ("BNC", "BMC", "BMC", "BNC"),
    "conv2d_winograd_mlc.x86": ("NCHW", "OIHW", "NCHW"),
    # Made when layouts are known: its tensors are in blocks already.
    "expand_depthwise_mlc.x86": ("NCHWB", "KCYXBL", "KL", "KIYXJL", "NKHWL"),
}
# (logical layout, rank of the kernel's argument): the argument's layout, blocks from its shape.
_BLOCKED = {
    ("NCHW", 5): "NCHW{4}c",
    ("OIHW", 6): "OIHW{4}i{5}o",
    ("OIHW", 7): "OIHW{4}i{5}o{6}i",
    ("NK", 3): "NK{2}n",
}


def agree(ours: Trial, reference: Trial) -> dict[str, Any]:
    """Return the fields of `measure.Check` for a built candidate and what it is compared with."""
    theirs = reference.guard("runtime", _outputs, reference)
    if reference.error:
        why = f"{reference.error.reason}: {reference.error}"
        return not_checked(f"the reference failed ({why})")
    found = ours.guard("runtime", _outputs, ours)
    if ours.error:
        return {"passed": False, "detail": f"{ours.error.reason}: {ours.error}"}
    if not found or not theirs:
        return not_checked(f"{ours.task.name} packs its arguments in another way")
    checks = [compare("output", a, b) for a, b in zip(found, theirs, strict=True)]
    return {"passed": all(c.passed for c in checks), "detail": "; ".join(map(str, checks))}


def not_checked(why: str) -> dict[str, Any]:
    """Return the fields of a `measure.Check` that was not made."""
    return {"passed": None, "detail": f"not checked: {why}"}


def _outputs(trial: Trial) -> list[Array] | None:
    """Run a kernel on its task's seeded inputs, and return its outputs in their logical layout.

    None when its arguments do not fit the template's row in `LAYOUTS`.
    """
    *layouts, result = LAYOUTS[trial.task.name]
    tensors = [arg for arg in trial.task.args if isinstance(arg, tuple) and "TENSOR" in arg[:1]]
    free = [
        (layout, random_values(shape, dtype, trial.settings.seed + position))
        for position, (layout, (_, shape, dtype)) in enumerate(zip(layouts, tensors, strict=False))
    ]
    arguments, found = [], []
    for tensor in trial.tensors:
        shape = shape_of(tensor)
        given = type(tensor.op).__name__ == "PlaceholderOp"
        array = _pack(free, shape) if given else np.zeros(shape, tensor.dtype)
        if array is None:
            return None
        arguments.append(trial.place.tensor(array))
        if not given:
            found.append(arguments[-1])
    trial.function(*arguments)
    plain = [_unpack(argument.numpy(), result) for argument in found]
    return [array for array in plain if array is not None] or None


def _layout(plain: str, shape: Sequence[int]) -> str | None:
    """Return the layout of an argument that holds a tensor of a plain layout."""
    if len(shape) == len(plain):
        return plain
    blocked = _BLOCKED.get((plain, len(shape)))
    return blocked.format(*shape) if blocked else None


def _pack(free: list[tuple[str, Array]], shape: tuple[int, ...]) -> Array | None:
    """Take the first logical input that fits an argument's shape out of `free`, and pack it."""
    from mlc.schedules import winograd_weights

    for position, (plain, array) in enumerate(free):
        layout = _layout(plain, shape)
        if layout is None or len(plain) != array.ndim:
            continue
        packed = relayout(array, plain, layout, pad=True)
        if plain == "OIHW" and len(shape) == array.ndim and array.shape != shape:
            packed = winograd_weights.packed(array, shape)
        if packed is not None and packed.shape == shape:
            del free[position]
            return packed
    return None


def _unpack(array: Array, plain: str) -> Array | None:
    layout = _layout(plain, array.shape)
    return relayout(array, layout, plain) if layout else None
