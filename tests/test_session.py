"""What the session hands to Ray; no Ray is started."""

from pathlib import Path

import recray
from recray.runtime.session import PACKAGE_FOLDER


def test_a_joined_cluster_gets_the_whole_package():
    assert [Path(folder) for folder in recray.__path__] == [PACKAGE_FOLDER]
