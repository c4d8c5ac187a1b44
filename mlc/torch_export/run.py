"""The verb itself: the steps of an export in order, and the report on what was written."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mlc import events
from mlc.errors import UsageError, did_you_mean
from mlc.torch_export.arguments import EXPORTERS, checked_output, parse_inputs, split_factory
from mlc.torch_export.binding import bind, weight_bytes
from mlc.torch_export.chatter import stdout_to
from mlc.torch_export.factory import build, import_torch, importable_cwd
from mlc.torch_export.write import TensorInfo, write

if TYPE_CHECKING:
    from mlc.options import ExportOptions


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What `export` wrote; `bytes` counts the weights' own file too, if there is one."""

    path: str
    exporter: str
    opset: int
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    bytes: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON data, inputs and outputs as objects."""
        return asdict(self) | {
            "inputs": [info._asdict() for info in self.inputs],
            "outputs": [info._asdict() for info in self.outputs],
        }


def export(options: ExportOptions, on_event: events.OnEvent = events.ignore) -> ExportReport:
    """Export what `options.factory` returns to the ONNX file `options.output`.

    The factory runs with torch's generator seeded by `options.seed`, in eval mode, on the CPU,
    and may be imported from the current folder, as with `python -m`. Inputs whose names are all
    parameters of `forward` are bound by name, otherwise by position; the ONNX inputs are called
    as given, or as the parameter. Integer inputs are traced with 0 and 1, others with seeded
    normal numbers. The file appears whole or not at all; weights over `write.EXTERNAL_DATA_BYTES`
    go to `<output>.data` beside it. Stack traces, which hold paths of this machine, are left out.

    Not for use from several threads: stdout, `sys.path` and the warning filters are borrowed
    (and given back).

    Raises:
        UsageError: a wrong factory, input, exporter or output path, or a factory that fails.
        ModelError: the module does not run on these inputs, or cannot be exported.
        MissingToolError: torch or onnxscript is not installed.
    """
    start = time.perf_counter()
    if options.exporter not in EXPORTERS:
        raise UsageError(
            f"no exporter is called {options.exporter!r}", did_you_mean(options.exporter, EXPORTERS)
        )
    specs = parse_inputs(options.inputs)
    module_name, attribute = split_factory(options.factory)
    output = checked_output(options.output)
    torch = import_torch(options.exporter)
    with importable_cwd(), torch.random.fork_rng(devices=[]), torch.no_grad():
        with stdout_to(sys.stderr, 2):
            model = build(module_name, attribute, options.seed)
            request = bind(model, specs, options)
        built = time.perf_counter()
        note = f"{options.factory}, {weight_bytes(model) / 1e6:.1f} MB of weights"
        on_event(events.Stage(name="build", seconds=built - start, note=note))
        signature, size = write(request, output, options, on_event)
    end = time.perf_counter()
    note = f"{options.exporter}, opset {signature.opset}"
    on_event(events.Stage(name="export", seconds=end - built, note=note))
    return ExportReport(
        path=str(output),
        exporter=options.exporter,
        bytes=size,
        seconds=end - start,
        **signature._asdict(),
    )
