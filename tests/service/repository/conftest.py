"""What the tests of the repository share."""

from collections.abc import Iterator

import pytest

from service.graph import composer


@pytest.fixture(scope="package", autouse=True)
def composing() -> Iterator[None]:
    """One process composes the graphs of all loads. Each would start its own, which imports onnx
    first.
    """
    composer.start_early()
    yield
    composer.end_shared()
