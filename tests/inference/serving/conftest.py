"""A server that several tests ask."""

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    """Two models, four answers at once, eight may wait."""
    from tests.inference.serving.live_server import LiveServer, served  # skips without fastapi

    models = [served("tiny", max_batch_size=4, max_queue=8), served("other", seed=2, completes=True)]
    with LiveServer(models) as running:
        yield running
