"""Models swapped and replicas replaced under constant load, on a real Ray."""

import pytest

from recray.benchmarks.serve import SMALL, SWAP_RATE, swaps
from recray.benchmarks.synthetic import make_bundle

SECONDS = 12.0


@pytest.fixture
def free_serve(ray_session):
    """Serve keeps its port for the next app of a shared Ray; the next test wants it free."""
    yield
    from ray import serve

    serve.shutdown()


def test_no_request_fails_or_mixes_while_models_and_replicas_change(free_serve, tmp_path):
    small = make_bundle(tmp_path / "small", *SMALL)
    row = swaps(small, tmp_path, SECONDS, print)
    assert (row.failed, row.mixed) == (0, 0)
    assert (row.asked, row.versions) == (int(SECONDS * SWAP_RATE), 2)
