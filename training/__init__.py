"""The offline package: data → long-tail profile → loss → loop → calibration → scores → export."""

import service  # noqa: F401 - turns onnxruntime's telemetry off
