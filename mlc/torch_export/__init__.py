"""PyTorch to ONNX: call a factory, trace what it returns, write one checked file.

`export` is the only door. A factory is named `package.module:callable` and returns a
`torch.nn.Module` or a `torch.export.ExportedProgram`; inputs are described by their shapes. torch
has two exporters: "dynamo" (`torch.export`, the default) and the older "torchscript", which
handles some modules that the first does not, and the other way round.

The steps: `arguments` parses, `factory` builds the module, `binding` pairs it with its inputs,
`write` has torch write the file (`chatter` keeps what torch prints away from stdout), `run` calls
them in this order.
"""

from mlc.torch_export.run import ExportReport, export

__all__ = ["ExportReport", "export"]
