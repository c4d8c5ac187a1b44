"""The inputs that were described, paired with what a module or an exported program takes."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mlc.errors import ModelError, UsageError
from mlc.torch_export.arguments import INPUT_FORM
from mlc.torch_export.chatter import reason

if TYPE_CHECKING:
    from mlc.options import ExportOptions
    from mlc.torch_export.arguments import InputSpec


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a torch exporter is given: a module or program, its inputs, ONNX names for them."""

    model: Any
    names: list[str]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    output_names: list[str] | None = None


def bind(model: Any, specs: list[InputSpec], options: ExportOptions) -> Request:
    """Pair the inputs with what the model takes; run a module once, to find mistakes early.

    Raises:
        UsageError: there are no inputs, or not those that the model takes.
        ModelError: the module does not run on them.
    """
    import torch

    if isinstance(model, torch.export.ExportedProgram):
        if options.exporter != "dynamo":
            raise UsageError(
                "an exported program can only go through the dynamo exporter", "--exporter dynamo"
            )
        return Request(model=model, names=_program_names(model, specs))
    if not specs:
        raise UsageError("no --input is given", f"give one for each input: {INPUT_FORM}")
    generator = torch.Generator().manual_seed(options.seed)
    request = _bind_module(model, specs, [_example(spec, generator) for spec in specs])
    try:
        result = model(*request.args, **request.kwargs)
    except Exception as err:
        raise ModelError(
            f"the module does not run on these inputs: {reason(err)}",
            f"check --input against forward{_parameters(model)}; `-vv` shows where it failed",
            detail=traceback.format_exc(),
        ) from err
    return replace(request, output_names=_output_names(result, request.names))


def weight_bytes(model: Any) -> int:
    """Return the size in bytes of what a module or an exported program stores."""
    state = model.state_dict() if callable(model.state_dict) else model.state_dict
    return sum(v.numel() * v.element_size() for v in state.values() if hasattr(v, "numel"))


def _bind_module(model: Any, specs: list[InputSpec], tensors: list[Any]) -> Request:
    """Bind the inputs to `forward`: by name if every name is a parameter, else by position."""
    signature = _parameters(model)
    fixed = [
        name
        for name, parameter in signature.parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    given = {spec.name: tensor for spec, tensor in zip(specs, tensors, strict=True) if spec.name}
    by_name = len(given) == len(specs) and given.keys() <= set(fixed)
    try:
        bound = signature.bind(**given) if by_name else signature.bind(*tensors)
    except TypeError as err:
        raise UsageError(
            f"the inputs do not fit forward{signature}: {err}",
            "give one --input for each parameter without a default, in the same order",
        ) from err
    if by_name:
        names = list(bound.arguments)
    else:
        spare = fixed + [f"input_{index}" for index in range(len(fixed), len(specs))]
        names = [spec.name or other for spec, other in zip(specs, spare, strict=False)]
    if len(set(names)) < len(names):
        raise UsageError(f"two inputs would be called the same: {', '.join(names)}", INPUT_FORM)
    return Request(model=model, names=names, args=bound.args, kwargs=bound.kwargs)


def _program_names(program: Any, specs: list[InputSpec]) -> list[str]:
    """Return the ONNX names of an exported program's inputs, whose shapes are fixed already.

    Raises:
        UsageError: inputs are given, but not these.
    """
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    own = [name for name in program.graph_signature.user_inputs if hasattr(values[name], "dtype")]
    if not specs:
        return own
    hint = "leave --input out: the program knows its shapes"
    if len(specs) != len(own):
        raise UsageError(
            f"the exported program takes {', '.join(own)}, not {len(specs)} inputs", hint
        )
    if {spec.name for spec in specs} == set(own):
        specs = sorted(specs, key=lambda spec: own.index(spec.name or ""))
    for name, spec in zip(own, specs, strict=True):
        want = [str(values[name].dtype).removeprefix("torch."), *values[name].shape]
        got = [spec.dtype, *spec.shape]
        fixed = [(w, g) for w, g in zip(want, got, strict=False) if isinstance(w, (str, int))]
        if len(want) != len(got) or any(w != g for w, g in fixed):
            raise UsageError(
                f"input {name!r} of the exported program is {want[0]} {want[1:]}, "
                f"not {got[0]} {got[1:]}",
                hint,
            )
    return [spec.name or name for name, spec in zip(own, specs, strict=True)]


def _parameters(model: Any) -> inspect.Signature:
    try:
        return inspect.signature(model.forward)
    except (TypeError, ValueError):  # compiled code may not have one
        return inspect.Signature([inspect.Parameter("inputs", inspect.Parameter.VAR_POSITIONAL)])


def _example(spec: InputSpec, generator: Any) -> Any:
    """Return a tensor for `spec`: 0 or 1 for integers (ids that every table has), or normals."""
    import torch

    dtype = getattr(torch, spec.dtype)
    if dtype.is_floating_point:
        return torch.randn(spec.shape, generator=generator).to(dtype)
    return torch.randint(0, 2, spec.shape, generator=generator).to(dtype)


def _output_names(result: Any, taken: list[str]) -> list[str] | None:
    """Return readable ONNX names for flat outputs; None for others, torch makes some up."""
    if isinstance(result, Mapping):
        outputs = dict(result)
    elif isinstance(result, (list, tuple)):
        outputs = {f"output_{index}": value for index, value in enumerate(result)}
    else:
        outputs = {"output": result}
    flat = all(hasattr(value, "is_floating_point") for value in outputs.values())
    return list(outputs) if flat and outputs.keys().isdisjoint(taken) else None
