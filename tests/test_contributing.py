"""The steps of CONTRIBUTING.md, taken from the page, in a copy of the project."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text()

LEARNS = """
import torch

from .test_training import liked_only, training_run, two_tastes


def test_the_new_model_learns_two_tastes(tmp_path):
    shard, (user, item) = two_tastes()
    run = training_run(tmp_path, "distance", liked_only(shard))
    run.fit()
    liked = (user + item) % 2 == 0
    with torch.no_grad():
        score = run.model.eval()(user, item)
    assert (score[liked][:, None] > score[~liked]).float().mean() > 0.95, "guessing gives 0.5"
"""


def block(language: str) -> str:
    return re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)[1]


def patched(text: str, diff: str) -> str:
    """Insert each line with a plus behind the line above it."""
    before = ""
    for line in diff.splitlines():
        if line.startswith("+"):
            assert text.count(f"{before}\n") == 1, before
            text = text.replace(f"{before}\n", f"{before}\n{line[1:]}\n")
        before = line[1:]
    return text


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("copy")
    for name in ("recray", "tests"):
        ignored = shutil.ignore_patterns("__pycache__", "ray")
        shutil.copytree(ROOT / name, root / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", root)
    (root / "recray/models/distance.py").write_text(block("python"))
    (root / "recray/config/presets/distance.yaml").write_text(block("yaml"))
    registry = root / "recray/models/__init__.py"
    registry.write_text(patched(registry.read_text(), block("diff")))
    (root / "tests/test_distance.py").write_text(LEARNS)
    return root


def test_a_model_added_by_these_steps_meets_the_contract_and_learns(copy):
    step = next(line for line in block("sh").splitlines() if "pytest" in line)
    command = [sys.executable, *step.split()[1:], "tests/test_distance.py", "-q"]
    command[command.index("distance")] = "distance or new_model"
    done = subprocess.run(
        command,
        cwd=copy,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(copy)},
    )
    assert done.returncode == 0, done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 10


def test_the_new_file_is_in_the_style_of_the_others(copy):
    files = ["recray/models/distance.py", "recray/models/__init__.py"]
    for check in (["format", "--check"], ["check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *check, *files], cwd=copy, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout
