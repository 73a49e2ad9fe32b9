"""The pages name files that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_every_file_that_a_page_names_exists(page):
    named = set(re.findall(r"`([a-z_]+(?:/[a-z_]+)*\.py)\b", (ROOT / page).read_text()))
    assert named, "the page names files"
    places = [ROOT, ROOT / "recray", ROOT / "recray" / "models"]
    missing = {name for name in named if not any((place / name).exists() for place in places)}
    assert missing <= {"recray/models/distance.py"}  # the file that the recipe adds
