"""What the tests of the service share."""

from collections.abc import Iterator

import pytest
import ray

from mneme.distributed.ray_runner import start_ray
from mneme.distributed.settings import ServiceSettings


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray of our own, one for a file's tests."""
    assert start_ray(ServiceSettings(), workers=2)
    yield
    ray.shutdown()
