"""What the tests of the whole way share."""

from tests.support.torch_exports import read_operators_once

read_operators_once()
