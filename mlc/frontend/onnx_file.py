"""Read an ONNX file from disk: parse, contain external data, check, and set the weights apart.

A model file is untrusted. Its external data must lie inside the model's folder: no absolute path,
no `..`, no symbolic or hard link (the holes of CVE-2022-25882, -2024-27318, -2026-27489,
-2026-34446 and -2026-34447).

Large weights leave the proto: `OnnxFile.weights` holds them as arrays (mapped from disk where they
are external) and the proto keeps an input in their place, so that checking and simplifying a model
costs little whatever its size.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import mmap
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from mlc.errors import ModelError
from mlc.frontend import order
from mlc.options import MAX_MODEL_NODES, MAX_TENSOR_BYTES, MAX_TENSOR_RANK

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

KEEP_BYTES = 4096  # smaller initializers stay in the proto: shapes, axes, scalars, biases
_CHUNK = 16 << 20


@dataclass(frozen=True, kw_only=True)
class OnnxFile:
    """A checked ONNX graph (`proto`, no large data) and its large weights by name."""

    path: Path
    proto: Any = field(repr=False)
    weights: dict[str, np.ndarray[Any, Any]] = field(repr=False)
    sha256: str
    size: int
    ir_version: int = 0  # as in the file; 0 where it was made in memory

    @property
    def opset(self) -> int:
        """The version of the default operator set that the model was written for."""
        return next((o.version for o in self.proto.opset_import if o.domain in ("", "ai.onnx")), 1)


def read(path: Path) -> OnnxFile:
    """Return the model at `path`.

    Raises:
        ModelError: no such file, not ONNX, damaged, invalid, or external data that is missing,
            too short or outside the model's folder.
    """
    data = _read_bytes(path)
    proto = _parse(path, data)
    ir_version = proto.ir_version
    digest = hashlib.sha256(data)
    size = len(data)
    del data
    files = _DataFiles(path.parent)
    proto, weights = _set_apart(proto, files)
    for name, content in sorted(files.digests.items()):
        digest.update(os.fsencode(name) + b"\0" + content)
    size += files.size
    order.sort(proto.graph)
    _check(path, proto)
    return OnnxFile(
        path=path,
        proto=proto,
        weights=weights,
        sha256=digest.hexdigest(),
        size=size,
        ir_version=ir_version,
    )


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"no such model file: {path}", "give the path of an .onnx file") from None
    except IsADirectoryError:
        raise ModelError(f"{path} is a folder, not a model file") from None
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from None


def _parse(path: Path, data: bytes) -> Any:
    from google.protobuf.message import DecodeError

    if not data:
        raise ModelError(f"{path} is empty")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError:
        raise ModelError(
            f"{path} is not an ONNX model, or is damaged or cut short",
            "export it again; `file` and the size may tell what it is",
        ) from None
    if not proto.ir_version or not proto.graph.output:
        raise ModelError(f"{path} is not an ONNX model: it has no graph with outputs")
    if len(proto.graph.node) > MAX_MODEL_NODES:
        raise ModelError(f"{path} has more than {MAX_MODEL_NODES} nodes")
    if proto.graph.sparse_initializer:
        raise ModelError(
            f"{path} holds sparse tensors, which are not supported", "export it with dense weights"
        )
    if any(isinstance(name, bytes) for name in _names(proto.graph)):
        raise ModelError(f"{path} is not a valid ONNX model: a name in it is not UTF-8 text")
    return proto


def _names(graph: Any) -> Iterator[str | bytes]:
    """Yield the names in a graph and its subgraphs; protobuf hands broken text out as bytes."""
    for info in [*graph.input, *graph.output, *graph.initializer]:
        yield info.name
    for info in graph.input:
        yield from (dim.dim_param for dim in info.type.tensor_type.shape.dim)
    for node in graph.node:
        yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
        for attribute in node.attribute:
            yield attribute.name
            for inner in [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]:
                yield from _names(inner)


def _check(path: Path, proto: Any) -> None:
    """Raise ModelError where onnx's checker objects, except to two things.

    An input or output without a shape: exporters write them and ONNX Runtime takes them; outputs'
    shapes follow from the nodes, and `shapes.fix` asks for inputs'. An operator that onnx does not
    know: the checker would name the first only, `support` lists all.
    """
    checked = onnx.ModelProto()
    checked.CopyFrom(proto)
    for info in [*checked.graph.input, *checked.graph.output]:
        if info.type.HasField("tensor_type"):
            info.type.tensor_type.shape.SetInParent()
    for node in checked.graph.node:
        if node.domain in ("", "ai.onnx") and not onnx.defs.has(node.op_type):
            node.domain = "unknown"
    checked.opset_import.add(domain="unknown", version=1)
    try:
        onnx.checker.check_model(checked)
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
        raise ModelError(f"{path} is not a valid ONNX model: {first}") from None


def nodes_of(graph: Any) -> Iterator[Any]:
    """Yield the nodes of a graph (or function) and of its subgraphs."""
    pending = [graph]
    while pending:
        for node in pending.pop().node:
            yield node
            for attribute in node.attribute:
                pending += [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def take_weights(proto: Any, path: Path) -> tuple[Any, dict[str, np.ndarray[Any, Any]]]:
    """Return (proto without large data, large weights by name) of a graph stored at `path`."""
    return _set_apart(proto, _DataFiles(path.parent, hashed=False))


def _set_apart(proto: Any, files: _DataFiles) -> tuple[Any, dict[str, np.ndarray[Any, Any]]]:
    weights = _arrays(proto, files)
    return _shrink(proto), weights


def _arrays(proto: Any, files: _DataFiles) -> dict[str, np.ndarray[Any, Any]]:
    """Return the large initializers as arrays; load small external tensors into the proto."""
    weights: dict[str, np.ndarray[Any, Any]] = {}
    for tensor in proto.graph.initializer:
        external = tensor.data_location == onnx.TensorProto.EXTERNAL
        if _nbytes(tensor) > KEEP_BYTES and tensor.name and tensor.name not in weights:
            weights[tensor.name] = files.array(tensor) if external else _inline_array(tensor)
        else:
            _take_in(tensor, files)
    for tensor in _nested_tensors(proto):
        _take_in(tensor, files)
    return weights


def _take_in(tensor: Any, files: _DataFiles) -> None:
    """Make a tensor whole where its data is external; else look whether it is."""
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        tensor.CopyFrom(onnx.numpy_helper.from_array(files.array(tensor), tensor.name))
    elif tensor.data_type and _nbytes(tensor):
        _inline_array(tensor)


def _shrink(proto: Any) -> Any:
    """Return the proto with an input in place of each large initializer.

    A fresh copy, since protobuf frees a message's memory only as a whole.
    """
    large = {t.name for t in proto.graph.initializer if t.name and _nbytes(t) > KEEP_BYTES}
    declared = {i.name for i in proto.graph.input}
    for tensor in proto.graph.initializer:
        if tensor.name in large and tensor.name not in declared:
            declared.add(tensor.name)
            info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            proto.graph.input.append(info)
    kept = [t for t in proto.graph.initializer if t.name not in large]
    # An initializer that is also an input is a default that callers may override. Here it is a
    # constant: only then can shapes be known and weights be laid out ahead of time.
    constants = {t.name for t in kept}
    inputs = [i for i in proto.graph.input if i.name not in constants]
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)
    # Up to version 3 every initializer had to be an input as well; nothing else changed with 4.
    proto.ir_version = max(proto.ir_version, 4)
    small = [onnx.TensorProto.FromString(t.SerializeToString()) for t in kept]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(small)
    del proto.training_info[:]  # no part of inference
    return onnx.ModelProto.FromString(proto.SerializeToString())


def _nested_tensors(proto: Any) -> Iterator[Any]:
    """Yield the tensors in attributes and in the initializers of subgraphs and functions."""
    pending = [*proto.graph.node, *(node for f in proto.functions for node in f.node)]
    while pending:
        for attribute in pending.pop().attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            yield from _sparse_parts([attribute.sparse_tensor, *attribute.sparse_tensors])
            for graph in [attribute.g, *attribute.graphs]:
                yield from graph.initializer
                yield from _sparse_parts(graph.sparse_initializer)
                pending.extend(graph.node)


def _sparse_parts(tensors: Iterable[Any]) -> Iterator[Any]:
    for tensor in tensors:
        yield from (tensor.values, tensor.indices)


def check_size(name: str, dims: Sequence[int], kind: int) -> int:
    """Return the bytes of a tensor of the ONNX element type `kind` (0: not known, a byte each).

    Raises:
        ModelError: its type is unknown, or it has more axes or bytes than the limits allow.
    """
    if len(dims) > MAX_TENSOR_RANK or any(size < 0 for size in dims):
        raise ModelError(f"tensor {name!r} has impossible dimensions {_short(dims)}")
    count = math.prod(dims) * (_dtype(name, kind).itemsize if kind else 1)
    if count > MAX_TENSOR_BYTES:
        raise ModelError(f"tensor {name!r} claims {count / 2**30:.0f} GiB: {_short(dims)}")
    return count


def _short(dims: Sequence[int]) -> str:
    return f"[{', '.join(map(str, dims[:8]))}{', ...' * (len(dims) > 8)}]"


def _dtype(name: str, kind: int) -> np.dtype[Any]:
    try:
        dtype: np.dtype[Any] = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind))
    except (KeyError, ValueError):
        raise ModelError(f"tensor {name!r} has an unknown element type ({kind})") from None
    return dtype


def _nbytes(tensor: Any) -> int:
    _dtype(tensor.name, tensor.data_type)  # never left open
    return check_size(tensor.name, tensor.dims, tensor.data_type)


def _inline_array(tensor: Any) -> np.ndarray[Any, Any]:
    try:
        return np.asarray(onnx.numpy_helper.to_array(tensor))
    except (ValueError, TypeError) as error:
        raise ModelError(f"the data of tensor {tensor.name!r} is damaged: {error}") from None


class _DataFiles:
    """The external data files of one model, each opened, checked, hashed and mapped once."""

    def __init__(self, folder: Path, *, hashed: bool = True):
        self.folder = folder
        self.hashed = hashed
        self.digests: dict[str, bytes] = {}
        self.size = 0
        self._maps: dict[str, mmap.mmap] = {}

    def array(self, tensor: Any) -> np.ndarray[Any, Any]:
        """Return the tensor's data, mapped read-only where its type has whole bytes."""
        entries = {e.key: e.value for e in tensor.external_data}
        data = self._map(os.fsdecode(entries.get("location", "")), tensor.name)
        dtype = _dtype(tensor.name, tensor.data_type)
        with contextlib.suppress(ValueError):
            offset, length = int(entries.get("offset", 0)), int(entries.get("length", -1))
            need = math.prod(tensor.dims) * dtype.itemsize
            bits = onnx.helper.tensor_dtype_to_string(tensor.data_type)
            if "INT4" in bits or "UINT2" in bits or "FLOAT4" in bits:
                raise ModelError(f"external tensor {tensor.name!r} has a sub-byte type ({bits})")
            if offset >= 0 and length in (-1, need) and offset + need <= len(data):
                flat = np.frombuffer(data, dtype, math.prod(tensor.dims), offset)
                return flat.reshape(tuple(tensor.dims))
        raise ModelError(
            f"external data of tensor {tensor.name!r} does not fit its file: {dict(entries)}",
            "the data file may be cut short; export the model again",
        )

    def _map(self, location: str, name: str) -> mmap.mmap:
        if location not in self._maps:
            descriptor = self._open(location, name)
            try:
                self.size += os.fstat(descriptor).st_size
                self._maps[location] = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
            except ValueError:
                raise ModelError(f"external data file {location!r} is empty") from None
            finally:
                os.close(descriptor)
            if self.hashed:
                self._hash(location)
        return self._maps[location]

    def _hash(self, location: str) -> None:
        digest = hashlib.sha256()
        view = memoryview(self._maps[location])
        for start in range(0, len(view), _CHUNK):
            digest.update(view[start : start + _CHUNK])
        self.digests[location] = digest.digest()

    def _open(self, location: str, name: str) -> int:
        """Open a data file below the folder, following no link at any step."""
        parts = PurePosixPath(location).parts
        if not parts or location.startswith("/") or ".." in parts or "\0" in location:
            raise _escape(name, location, "it points outside the model's folder")
        directory = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for part in parts[:-1]:
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
                inner = os.open(part, flags, dir_fd=directory)
                os.close(directory)
                directory = inner
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            descriptor = os.open(parts[-1], flags, dir_fd=directory)
        except FileNotFoundError:
            raise ModelError(
                f"external data file {location!r} (tensor {name!r}) is missing",
                f"put it beside the model, in {self.folder}",
            ) from None
        except OSError as error:
            raise _escape(
                name, location, f"it is a link or unreadable ({error.strerror})"
            ) from None
        finally:
            os.close(directory)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            os.close(descriptor)
            raise _escape(name, location, "it is a hard link or not a plain file")
        return descriptor


def _escape(name: str, location: str, why: str) -> ModelError:
    return ModelError(
        f"external data of tensor {name!r} is refused ({location!r}): {why}",
        "a model may only name plain files below its own folder; copy the data there",
    )
