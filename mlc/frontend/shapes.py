"""Give every input a fixed shape: what the user asked for, else 1 for batch-like dimensions.

The graph executor needs fixed shapes. `--shape` takes two forms: `input:1,3,224,224` sets a whole
input, `batch=4` sets a named dimension wherever it occurs. `batch=1,4` lists sizes to compile for:
`combinations` makes plain options of every combination, which the stages then get one by one.
"""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import onnx

from mlc.errors import ModelError, UsageError, did_you_mean
from mlc.events import Notice, OnEvent
from mlc.options import MAX_BUCKETS
from mlc.sizes import EVERY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlc.frontend.onnx_file import OnnxFile

# A first dimension is taken for the batch anyway; further back its name must say so.
_BATCH = re.compile(r"(^|[_.])(batch(_?size)?|bs)($|[_.\d])|^[nb]\d*$", re.IGNORECASE)
_EXAMPLES = (  # what a pasted suggestion says, by what the dimension's name reminds of
    (re.compile(r"height|width|^[hw]$|image|size", re.IGNORECASE), 224),
    (re.compile(r"seq|length|len|tokens?|^[ts]$", re.IGNORECASE), 128),
)
_T = TypeVar("_T")
_MAX_DIGITS = 9  # of a size: far beyond what a tensor can have, and within 32 bits


@dataclass(frozen=True, kw_only=True)
class ShapeRequest:
    """The user's `--shape` options: whole inputs by name, single dimensions by name."""

    inputs: dict[str, tuple[int, ...]]
    dims: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Combination:
    """One of the combinations of sizes that a model is compiled for: a bucket of the artifact.

    `options` are plain `--shape` options; `dims` the sizes of the dimensions for which several were
    listed (none where this is the only one).
    """

    dims: dict[str, int]
    options: tuple[str, ...]


def parse(options: Sequence[str]) -> ShapeRequest:
    """Return what the `--shape` options ask for.

    Raises:
        UsageError: an option has neither form or a size beyond what a tensor can have, two options
            contradict each other, or one lists several sizes (see `combinations`).
    """
    inputs, dims = _read(options)
    for name, sizes in dims.items():
        if len(sizes) > 1:
            raise UsageError(
                f"--shape gives {name!r} {len(sizes)} sizes, and here it can have only one",
                "`mlc compile`, `check` and `tune` take several; here write "
                + option(f"{name}={sizes[0]}"),
            )
    return ShapeRequest(inputs=inputs, dims={name: sizes[0] for name, sizes in dims.items()})


def combinations(options: Sequence[str]) -> tuple[Combination, ...]:
    """Return every combination of the sizes that the options list, in their order.

    Raises:
        UsageError: as `parse`, but for several sizes; or there are more than `MAX_BUCKETS`.
    """
    inputs, dims = _read(options)
    listed = {name: sizes for name, sizes in dims.items() if len(sizes) > 1}
    count = math.prod(map(len, listed.values()))
    if count > MAX_BUCKETS:
        raise UsageError(
            f"--shape asks for {count} combinations of sizes, and {MAX_BUCKETS} are the most",
            "list fewer sizes, or compile two artifacts",
        )
    if not listed:
        return (Combination(dims={}, options=tuple(options)),)
    same = [f"{name}:{','.join(map(str, shape))}" for name, shape in inputs.items()]
    same += [f"{name}={sizes[0]}" for name, sizes in dims.items() if name not in listed]
    found = []
    for sizes in itertools.product(*listed.values()):
        chosen = dict(zip(listed, sizes, strict=True))
        own = (f"{name}={size}" for name, size in chosen.items())
        found.append(Combination(dims=chosen, options=(*same, *own)))
    return tuple(found)


def check_open(wanted: Sequence[Combination], dynamic: Sequence[str]) -> None:
    """Raise UsageError where several sizes are listed and dimensions are to stay open."""
    if dynamic and len(wanted) > 1:
        raise UsageError(
            "--shape lists sizes, and --dynamic keeps dimensions open", "give one of them"
        )


def _read(
    options: Sequence[str],
) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Return the shape of each whole input, and the sizes of each dimension, each size once."""
    inputs: dict[str, tuple[int, ...]] = {}
    dims: dict[str, tuple[int, ...]] = {}
    for option in options:
        name, colon, sizes = option.rpartition(":")
        dim, equals, size = option.rpartition("=")
        if colon and re.fullmatch(r"(\d+(,\d+)*)?", sizes.replace(" ", "")):
            # A whole input may be empty: the past that a text generator starts without, say.
            _set(inputs, name, tuple(_size(n, 0) for n in sizes.split(",") if n.strip()))
        elif equals and all(part.strip().isdecimal() for part in size.split(",")):
            _set(dims, dim, tuple(dict.fromkeys(_size(n, 1) for n in size.split(","))))
        else:
            raise UsageError(
                f"--shape {option!r} is not understood",
                "write `--shape input:1,3,224,224` (a whole input), `--shape batch=1` (a named "
                "dimension) or `--shape batch=1,4,16` (several sizes, one artifact)",
            )
    return inputs, dims


def _set(values: dict[str, _T], name: str, value: _T) -> None:
    if values.setdefault(name, value) != value:
        raise UsageError(f"--shape is given twice for {name!r}, with different sizes")


def _size(text: str, least: int) -> int:
    if len(text.strip()) > _MAX_DIGITS or int(text) < least:
        raise UsageError(f"--shape needs sizes from {least} to {10**_MAX_DIGITS - 1}")
    return int(text)


def fix(
    file: OnnxFile, request: ShapeRequest, on_event: OnEvent, keep: Sequence[str] = ()
) -> OnnxFile:
    """Return the file with every dimension of every input fixed, and stale shapes removed.

    The open dimensions that `keep` names (`EVERY`: all) stay; see `open_names`.

    Raises:
        UsageError: `request` names an input or dimension that the model does not have.
        ModelError: a dimension cannot be guessed (the hint holds the option to paste), or a
            requested shape contradicts the model.
    """
    named, kept = opened(file, request, keep)
    fixed, unknown = fix_known(named, request, on_event, kept)
    if unknown:
        raise ModelError(
            "the model leaves sizes open that cannot be guessed",
            "say what they are, for example: " + " ".join(map(option, unknown)),
        )
    return fixed


def opened(
    file: OnnxFile, request: ShapeRequest, keep: Sequence[str]
) -> tuple[OnnxFile, tuple[str, ...]]:
    """Return the file with a name for every open dimension, and the names of those that stay open.

    Where `keep` is empty that is the file as it is, and none.

    Raises:
        UsageError: a dimension that `keep` names is not open.
    """
    named = _named(file) if keep else file
    return named, _kept(named, request, keep)


def _named(file: OnnxFile) -> OnnxFile:
    """Return the file with a name for every open dimension of its inputs."""
    proto = onnx.ModelProto()
    proto.CopyFrom(file.proto)
    for info in proto.graph.input:
        for position, dim in enumerate(info.type.tensor_type.shape.dim):
            if dim.dim_value <= 0 and not dim.dim_param:
                dim.dim_param = f"{info.name}.{position}"
    return replace(file, proto=proto)


def _kept(file: OnnxFile, request: ShapeRequest, keep: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the dimensions that stay open.

    Raises:
        UsageError: there is none, or none of a name that `keep` has, or it is also to be fixed.
    """
    fixed = {
        dim.dim_param
        for info in file.proto.graph.input
        if info.name in request.inputs
        for dim in info.type.tensor_type.shape.dim
    }
    names = [n for n in open_names(file) if n not in fixed and n not in request.dims]
    for name in keep:
        if name not in (EVERY, *names):
            raise UsageError(
                f"--dynamic {name}: the model has no such dimension that is not fixed by --shape",
                did_you_mean(name, names),
            )
    if keep and not names:
        raise UsageError("--dynamic: the model has no open dimension", "leave --dynamic out")
    return tuple(names if EVERY in keep else keep)


def open_names(file: OnnxFile) -> tuple[str, ...]:
    """Return the names of the dimensions that are open, each once, in the order of the inputs."""
    names = [
        dim.dim_param
        for info in file.proto.graph.input
        if info.name not in file.weights
        for dim in info.type.tensor_type.shape.dim
        if dim.dim_param
    ]
    return tuple(dict.fromkeys(names))


def fix_known(
    file: OnnxFile, request: ShapeRequest, on_event: OnEvent, kept: Sequence[str] = ()
) -> tuple[OnnxFile, tuple[str, ...]]:
    """Return the file with the dimensions fixed that can be, and an example for each that cannot.

    Those named in `kept` stay open.

    The examples are values of `--shape`; see `option`. Raises what `fix` raises, but for them.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(file.proto)
    inputs = {i.name: i for i in proto.graph.input if i.name not in file.weights}
    _check_names(request, inputs)
    unknown: list[str] = []
    for name, info in inputs.items():
        kind = info.type.WhichOneof("value")
        if kind != "tensor_type":
            raise ModelError(
                f"input {name!r} is a {kind or 'value without a type'}, only tensors are supported"
            )
        if name in request.inputs:
            _set_shape(info, request.inputs[name])
        elif not info.type.tensor_type.HasField("shape"):
            unknown.append(f"{name}:1,3,224,224")
        else:
            unknown += _fix_dims(info, request.dims, on_event, kept)
    _forget_inner_shapes(proto)
    return replace(file, proto=proto), tuple(dict.fromkeys(unknown))


def _check_names(request: ShapeRequest, inputs: dict[str, Any]) -> None:
    for name in request.inputs:
        if name not in inputs:
            raise UsageError(f"the model has no input {name!r}", did_you_mean(name, inputs))
    dims = {
        dim.dim_param
        for info in inputs.values()
        for dim in info.type.tensor_type.shape.dim
        if dim.dim_param
    }
    for name in request.dims:
        if name not in dims:
            raise UsageError(
                f"the model's inputs have no dimension named {name!r}", did_you_mean(name, dims)
            )


def _set_shape(info: Any, shape: tuple[int, ...]) -> None:
    tensor = info.type.tensor_type
    old = tensor.shape.dim if tensor.HasField("shape") else None
    # Some exporters write -1 or 0 for an open dimension.
    declared = [d.dim_value if d.dim_value > 0 else None for d in old or ()]
    clash = old is not None and (
        len(declared) != len(shape)
        or any(d not in (None, size) for d, size in zip(declared, shape, strict=True))
    )
    if clash:
        shown = ",".join("?" if d is None else str(d) for d in declared)
        raise ModelError(
            f"--shape gives input {info.name!r} the shape {','.join(map(str, shape))}, "
            f"but the model declares {shown}",
            "only open dimensions (?) can be chosen",
        )
    del tensor.shape.dim[:]
    for size in shape:
        tensor.shape.dim.add().dim_value = size


def _fix_dims(
    info: Any, sizes: dict[str, int], on_event: OnEvent, kept: Sequence[str]
) -> list[str]:
    """Fix the open dimensions of one input; return an example for each that stays open."""
    unknown = []
    for position, dim in enumerate(info.type.tensor_type.shape.dim):
        if dim.dim_value > 0 or (dim.dim_param and dim.dim_param in kept):
            continue
        label = dim.dim_param or f"dimension {position}"
        if dim.dim_param in sizes:
            dim.dim_value = sizes[dim.dim_param]
        elif _BATCH.search(dim.dim_param) or (position == 0 and not _example(dim.dim_param)):
            dim.dim_value = 1
            on_event(Notice(text=f"input {info.name!r}: {label} is set to 1 (batch-like)"))
        else:
            unknown.append(dim.dim_param)
    return [_suggestion(info, name) for name in unknown]


def _example(name: str) -> int | None:
    return next((size for pattern, size in _EXAMPLES if pattern.search(name)), None)


def example(name: str) -> str:
    """Return a value of `--shape` that fixes a named dimension to some size."""
    return f"{name}={_example(name) or 16}"


def _suggestion(info: Any, dim_param: str) -> str:
    if dim_param:
        return example(dim_param)
    dims = info.type.tensor_type.shape.dim
    sizes = [d.dim_value if d.dim_value > 0 else _example(d.dim_param) or 16 for d in dims]
    return f"{info.name}:{','.join(map(str, sizes))}"


def option(value: str) -> str:
    """Return the `--shape` option for a value, to be pasted into a shell: names are untrusted."""
    escaped = value.replace("'", "'\"'\"'")
    return f"--shape '{escaped}'"


def _forget_inner_shapes(proto: Any) -> None:
    """Drop declared shapes of intermediate values and outputs: they name the old dimensions."""
    del proto.graph.value_info[:]
    for info in proto.graph.output:
        if info.type.WhichOneof("value") == "tensor_type":
            info.type.tensor_type.ClearField("shape")
