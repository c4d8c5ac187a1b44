"""The user's factory: found, imported and called, with errors that say which of these failed."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlc.errors import MissingToolError, UsageError, did_you_mean
from mlc.torch_export.arguments import FACTORY_FORM
from mlc.torch_export.chatter import reason

if TYPE_CHECKING:
    from collections.abc import Iterator

_INSTALL = "pip install 'mlc-compiler[torch]'"


def import_torch(exporter: str) -> Any:
    """Return the `torch` module.

    Raises:
        MissingToolError: it, or what this exporter needs beside it, is not installed.
    """
    try:
        import torch
    except ImportError as err:
        raise MissingToolError(f"torch cannot be imported: {err}", _INSTALL) from err
    if exporter == "dynamo" and importlib.util.find_spec("onnxscript") is None:
        raise MissingToolError("the dynamo exporter needs onnxscript", _INSTALL)
    return torch


@contextlib.contextmanager
def importable_cwd() -> Iterator[None]:
    """Put the current folder first on the import path, as `python -m` does."""
    before = list(sys.path)
    sys.path.insert(0, str(Path.cwd()))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = before


def build(module_name: str, attribute: str, seed: int) -> Any:
    """Return the factory's module (in eval mode, on the CPU) or exported program.

    What the name leads to may also be a module or program itself.

    Raises:
        UsageError: nothing is there, it fails, or returns something else.
    """
    import torch

    kinds = (torch.nn.Module, torch.export.ExportedProgram)
    torch.manual_seed(seed)
    made = _find(_import_module(module_name), attribute)
    factory = f"{module_name}:{attribute}"
    if not isinstance(made, kinds):
        if not callable(made):
            raise UsageError(f"{factory} is a {type(made).__name__}, not callable", FACTORY_FORM)
        torch.manual_seed(seed)  # again: the import may have drawn numbers, but only the first one
        try:
            made = made()
        except (Exception, SystemExit) as err:
            raise UsageError(
                f"{factory}() failed: {reason(err)}",
                "a factory is called without arguments; `-vv` shows where it failed",
                detail=traceback.format_exc(),
            ) from err
    if not isinstance(made, kinds):
        raise UsageError(
            f"{factory}() returned a {type(made).__name__}",
            "return a torch.nn.Module or a torch.export.ExportedProgram",
        )
    return made.eval().cpu() if isinstance(made, torch.nn.Module) else made


def _import_module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as err:
        if err.name is None or not f"{name}.".startswith(f"{err.name}."):
            raise UsageError(
                f"importing {name} failed: {err}",
                f"install the package that {err.name!r} belongs to, or run from its folder",
            ) from err
        raise UsageError(
            f"there is no Python module {err.name!r}",
            "run from the folder that holds it, or install it; " + FACTORY_FORM,
        ) from err
    except (Exception, SystemExit) as err:
        raise UsageError(
            f"importing {name} failed: {reason(err)}",
            f"`python -c 'import {name}'` shows where",
            detail=traceback.format_exc(),
        ) from err


def _find(module: Any, attribute: str) -> Any:
    found = module
    for name in attribute.split("."):
        if not hasattr(found, name):
            own = [
                key
                for key, value in vars(module).items()
                if callable(value) and getattr(value, "__module__", None) == module.__name__
            ]
            raise UsageError(
                f"{module.__name__} has no {attribute!r}", did_you_mean(attribute, own)
            )
        found = getattr(found, name)
    return found
