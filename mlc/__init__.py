"""mlc: a command-line model optimization compiler.

The data flow, each arrow one public function::

    model.onnx --frontend.load--> Model --passes.optimize--> Model
    Model + Target --build.build--> Library --artifact.save--> model.mlc
    model.mlc --runtime.open--> Session --> run | bench | verify

The verbs of the command line are functions here too (each documented where it is defined)::

    import mlc
    report = mlc.compile("resnet18.onnx", target="llvm")   # writes and verifies resnet18.mlc
    with mlc.open("resnet18.mlc") as session:
        outputs = session.run({"input": x})                # numpy in, numpy out

This module imports nothing heavy: the verbs load on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mlc.api import (
        bench,
        bisect,
        check,
        compile,
        compile_bundle,
        export,
        inspect,
        open,
        targets,
        verify,
    )

__all__ = [
    "bench",
    "bisect",
    "check",
    "compile",
    "compile_bundle",
    "export",
    "inspect",
    "open",
    "targets",
    "verify",
]


def __getattr__(name: str) -> object:
    """Load a verb from `mlc.api` on first use (PEP 562), so that `import mlc` stays cheap."""
    if name in __all__:
        from mlc import api

        return getattr(api, name)
    raise AttributeError(f"module 'mlc' has no attribute {name!r}")
