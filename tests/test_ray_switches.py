"""The switches of Ray are names that the installed Ray reads."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from recray.runtime import ray_switches


def serve_source() -> str:
    spec = find_spec("ray.serve")
    folder = Path(spec.submodule_search_locations[0])
    return "\n".join(file.read_text() for file in (folder / "_private").glob("*.py"))


@pytest.mark.parametrize("switches", [ray_switches.RAY_SWITCHES, ray_switches.PRODUCTION_SWITCHES])
def test_serve_reads_each_of_its_switches(switches):
    source = serve_source()
    named = [name for name in switches if name.startswith("RAY_SERVE_")]
    assert named
    assert [name for name in named if f'"{name}"' not in source] == []


def test_a_dead_proxy_is_looked_for_each_second():
    assert ray_switches.RAY_SWITCHES["RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S"] == "1"
