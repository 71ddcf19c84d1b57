"""The service: priors, adjustment and batching behind HTTP. It shares `service.contract` with
`training`.
"""

import os

# Set before onnxruntime is imported. Otherwise it records events in a file under the user's cache,
# for upload to its maker.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
