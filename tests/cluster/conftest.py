"""Marks of the tests of this folder, which `make test-cluster` runs."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in Path(item.path).parents:
            for mark in (pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1800)):
                item.add_marker(mark)
