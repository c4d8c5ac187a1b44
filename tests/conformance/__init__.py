"""The onnx package's backend tests, through mlc's own path; see `run`."""
