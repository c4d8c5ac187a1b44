"""What results are compared with: ONNX Runtime on the original model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mlc import ort_env
from mlc.errors import MissingToolError, ModelError, RunError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

Array = np.ndarray[Any, Any]
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"  # ONNX Runtime's


class Reference:
    """ONNX Runtime on the original file, its graph optimizer switched off."""

    def __init__(
        self,
        path: Path,
        *,
        optimize: bool = False,
        threads: int | None = None,
        provider: str = CPU,
        saturates: bool = True,
    ):
        """Load the model.

        Without `saturates` sums of 8-bit products do not saturate at 16 bits, as they may by default on
        CPUs without VNNI (a faster way, and a wrong one).

        Raises:
            MissingToolError: this ONNX Runtime cannot use a GPU, and was asked to.
            ModelError: it cannot load the model.
        """
        ort = ort_env.onnxruntime()
        if provider not in ort.get_available_providers():
            raise _no_provider("this ONNX Runtime was built without")
        options = ort.SessionOptions()
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = (
            level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
        )
        options.log_severity_level = 4
        if not saturates:
            options.add_session_config_entry("session.x64quantprecision", "1")
        if threads:
            options.intra_op_num_threads = threads
        try:
            # What a GPU does not do, ONNX Runtime always does on the CPU.
            self.session = ort.InferenceSession(str(path), options, providers=[provider])
        except Exception as error:  # noqa: BLE001 - ORT raises types of its own
            first = str(error).strip().splitlines()[0][:300]
            raise ModelError(
                f"ONNX Runtime, the reference, cannot load {path}: {first}",
                "`mlc compile --no-verify` compiles without a reference (recorded in the artifact)",
            ) from None
        if provider not in self.session.get_providers():  # it goes on without, and only warns
            raise _no_provider("ONNX Runtime cannot start")
        self.name = f"onnxruntime {ort.__version__}"
        self._device = "cuda" if provider == CUDA else "cpu"
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.outputs = [value.name for value in self.session.get_outputs()]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the reference outputs by name."""
        try:
            values = self.session.run(self.outputs, dict(inputs))
        except Exception as error:  # noqa: BLE001 - ORT raises types of its own
            first = str(error).strip().splitlines()[0][:300]
            raise RunError(f"the reference cannot run on these inputs: {first}") from None
        return {n: np.asarray(v) for n, v in zip(self.outputs, values, strict=True)}

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Any:
        """Return an IOBinding of inputs, and of buffers like `outputs`: its runs copy nothing."""
        value = ort_env.onnxruntime().OrtValue.ortvalue_from_numpy
        binding = self.session.io_binding()
        for name, array in inputs.items():
            binding.bind_ortvalue_input(name, value(array, self._device))
        for name in self.outputs:
            binding.bind_ortvalue_output(name, value(outputs[name], self._device))
        return binding


def _no_provider(what: str) -> MissingToolError:
    return MissingToolError(
        f"{what} its CUDA provider, and comparing on a GPU needs it",
        "pip uninstall onnxruntime; pip install onnxruntime-gpu; or leave `--against` out",
    )
