"""The one door to ONNX Runtime: it folds constants, is the reference and a peer for timings."""

from __future__ import annotations

import os
from typing import Any


def onnxruntime() -> Any:
    """Import and return `onnxruntime`, its telemetry off unless the user set that variable.

    Since 1.29 its builds for Linux and macOS report to Microsoft by default: names of models and
    graphs, hashes of weights. mlc uses the network only when it was asked to.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime
