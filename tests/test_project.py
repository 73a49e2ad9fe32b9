"""What the files around the package say about it agrees."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_supported_pythons_are_tested():
    named = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if ":: Python :: 3." in c]
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == named
    local = re.search(r"PYTHONS:-([\d. ]+)", (ROOT / ".ci/pythons").read_text())
    assert local[1].split() == named
    assert PROJECT["requires-python"] == f">={named[0]}"


def test_what_developers_install_is_pinned():
    pinned = {
        re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower()
        for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]
    names = {re.match(r"[\w.-]+", requirement)[0].lower() for requirement in wanted}
    assert not names - pinned


def test_every_file_that_github_reads_is_yaml():
    files = [*(ROOT / ".github").rglob("*.yml"), ROOT / ".pre-commit-config.yaml"]
    assert all(isinstance(yaml.safe_load(path.read_text()), dict) for path in files)
