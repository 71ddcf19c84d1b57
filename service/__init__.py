"""The service: priors, adjustment and batching behind HTTP; `service.contract` is what it shares
with `training`.
"""

import os

# before anything imports onnxruntime, which else keeps a file of events under the user's cache, to
# be uploaded to its maker
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
