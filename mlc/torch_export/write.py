"""The ONNX file: written by torch's exporter, cleaned and checked; it appears whole or not at all."""

from __future__ import annotations

import contextlib
import tempfile
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mlc import events
from mlc.errors import ModelError, UsageError
from mlc.torch_export.arguments import EXPORTERS
from mlc.torch_export.binding import weight_bytes
from mlc.torch_export.chatter import captured, interrupted, reason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlc.options import ExportOptions
    from mlc.torch_export.binding import Request

EXTERNAL_DATA_BYTES = 1_500_000_000  # protobuf ends at 2 GB; above this weights get their own file

_STACK_TRACE = "pkg.torch.onnx.stack_trace"


class TensorInfo(NamedTuple):
    """An input or output of the ONNX file; a dimension is a number, a symbol or "?"."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype}[{', '.join(map(str, self.shape))}]"


class Signature(NamedTuple):
    """What an ONNX file takes and gives, and in which opset."""

    opset: int
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


def write(
    request: Request, output: Path, options: ExportOptions, on_event: events.OnEvent
) -> tuple[Signature, int]:
    """Export into a folder beside `output`, check there, then move: whole or not at all.

    Returns what the file takes and gives, and its size in bytes.

    Raises:
        UsageError: the files cannot be written there.
        ModelError: the exporter failed, or what it wrote is wrong.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as folder:
            draft = Path(folder) / output.name
            _run_exporter(request, draft, options, on_event)
            signature = _finish(draft, options)
            others = [path for path in Path(folder).iterdir() if path != draft]
            size = sum(path.stat().st_size for path in (draft, *others))
            for path in (*others, draft):  # the model last: it refers to the others
                path.replace(output.parent / path.name)
    except OSError as err:
        raise UsageError(
            f"cannot write {str(output)!r}: {err.strerror or err}", "choose another place with -o"
        ) from err
    return signature, size


def _run_exporter(
    request: Request, draft: Path, options: ExportOptions, on_event: events.OnEvent
) -> None:
    """Call torch's exporter, silenced but for warnings that the trace is true for one input only.

    Raises:
        ModelError: it failed; `detail` holds what it printed and the traceback.
    """
    import torch

    other = next(name for name in EXPORTERS if name != options.exporter)
    arguments: dict[str, Any] = {"dynamo": False}
    large = weight_bytes(request.model) > EXTERNAL_DATA_BYTES
    if options.exporter == "dynamo":
        arguments = {"dynamo": True, "external_data": large}
    elif large:
        raise ModelError(
            "the weights are too large for one file, and the torchscript exporter would scatter "
            "them over one file each",
            f"try `--exporter {other}`",
        )
    with captured() as (chatter, caught), _operator_by_operator():
        try:
            torch.onnx.export(
                request.model,
                request.args,
                str(draft),
                kwargs=request.kwargs,
                input_names=request.names,
                output_names=request.output_names,
                opset_version=options.opset,
                verbose=False,
                **arguments,
            )
        except OSError:
            raise
        except Exception as err:
            if interrupted(err):
                raise KeyboardInterrupt from err
            chatter.seek(0)
            raise ModelError(
                f"the {options.exporter} exporter failed: {reason(err)}",
                f"try `--exporter {other}`; `-vv` shows all that torch said",
                detail=chatter.read() + traceback.format_exc(),
            ) from err
    torch_folder = str(Path(torch.__file__).parent)
    for item in caught:
        if item.category.__name__ == "TracerWarning" and not item.filename.startswith(torch_folder):
            text = f"{Path(item.filename).name}, line {item.lineno}: {item.message}"
            on_event(events.Notice(text=text.partition("\n")[0], level="warning"))


@contextlib.contextmanager
def _operator_by_operator() -> Iterator[None]:
    """Keep torch's attention layers from calling one fused operator, which ONNX does not have."""
    import torch

    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _finish(draft: Path, options: ExportOptions) -> Signature:
    """Drop stack traces from the file, check it, and return what it takes and gives.

    Raises:
        ModelError: the file is not valid ONNX, or not of the opset that was asked for.
    """
    import onnx

    model = onnx.load(str(draft), load_external_data=False)
    _drop_stack_traces(model.graph)
    for function in model.functions:
        _drop_stack_traces(function)
    onnx.save(model, str(draft))
    try:
        onnx.checker.check_model(str(draft))
    except onnx.checker.ValidationError as err:
        raise ModelError(
            f"the exporter wrote a file that is not valid ONNX: {reason(err)}",
            "try the other exporter, or another --opset",
        ) from err
    opset = next(int(item.version) for item in model.opset_import if item.domain in ("", "ai.onnx"))
    if options.opset not in (None, opset):
        raise ModelError(
            f"the exporter wrote opset {opset} instead of {options.opset}",
            "leave --opset out, or try `--exporter torchscript`",
        )
    return Signature(opset, _infos(model.graph.input), _infos(model.graph.output))


def _drop_stack_traces(graph: Any) -> None:
    for node in graph.node:
        kept = [item for item in node.metadata_props if item.key != _STACK_TRACE]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                _drop_stack_traces(inner)


def _infos(values: Any) -> tuple[TensorInfo, ...]:
    import onnx

    infos = []
    for value in values:
        tensor = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
        shape = tuple(
            int(dim.dim_value) if dim.HasField("dim_value") else str(dim.dim_param or "?")
            for dim in tensor.shape.dim
        )
        infos.append(TensorInfo(value.name, dtype, shape))
    return tuple(infos)
