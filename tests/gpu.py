"""`make test-gpu`: the tests that compare served answers with the formula, on CUDA. Without a GPU
it says so and fails.
"""

import os
import sys

import pytest

from service.graph import providers


def main() -> int:
    try:
        providers.check_runtime()
        reason = providers.probe("cuda")
    except providers.ProviderUnavailable as error:
        reason = str(error)
    if reason is not None:
        sys.stderr.write(f"test-gpu: nothing was tested: CUDA does not work here: {reason}\n")
        return 1
    os.environ["PRIORDIAL_TEST_PROVIDER"] = "cuda"
    return int(pytest.main(["-q", "tests/service/graph/test_head.py", "tests/flow"]))


if __name__ == "__main__":
    sys.exit(main())
