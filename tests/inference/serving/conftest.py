"""A server that several tests ask."""

from collections.abc import Iterator

import pytest

from tests.inference.serving.live_server import LiveServer, served


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    """Two models, four answers at once, eight may wait."""
    models = [served("tiny", max_batch_size=4, max_queue=8), served("other", seed=2, completes=True)]
    with LiveServer(models) as running:
        yield running
