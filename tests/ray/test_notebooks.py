"""The notebooks from top to bottom, one after another in one folder, as a reader runs them."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from ..test_notebooks import NOTEBOOKS

# Fewer epochs and trials than a reader sees: what is tried is that every cell runs.
SHORTER = {
    '{"train.epochs": 40}': '{"train.epochs": 3}',
    '{"train.epochs": 15}': '{"train.epochs": 3}',
    '{"train.epochs": 5}': '{"train.epochs": 2}',
    '{"train.epochs": 4}': '{"train.epochs": 2}',
    "trials=8": "trials=4",
    "sequence train.epochs=12": "sequence train.epochs=2",
}


def execute(path: Path, folder: Path, changes: dict[str, str]):
    book = nbformat.read(path, as_version=4)
    for cell in book.cells:
        for old, new in changes.items():
            cell.source = cell.source.replace(old, new)
    client = NotebookClient(book, timeout=240, resources={"metadata": {"path": str(folder)}})
    client.execute()
    return book


def shown(book) -> list[dict]:
    return [o for cell in book.cells if cell.cell_type == "code" for o in cell.outputs]


@pytest.fixture
def kernel(monkeypatch, tmp_path):
    """Kernels import this very checkout, and keep what they write about themselves here."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("MPLBACKEND", "agg")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_notebooks_run_from_top_to_bottom(kernel, tmp_path, port):
    for path in NOTEBOOKS:
        book = execute(path, tmp_path, SHORTER | {"PORT = 8000": f"PORT = {port}"})
        outputs = shown(book)
        pictures = [o for o in outputs if "image/png" in o.get("data", {})]
        tables = [o for o in outputs if "text/html" in o.get("data", {})]
        assert tables, path.name
        assert pictures or path.stem == "05_serving", path.name
        if path.stem == "05_serving":
            assert any(
                "'verified': True" in o.get("data", {}).get("text/plain", "") for o in outputs
            )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_one_line_makes_it_movielens(kernel, tmp_path, movielens):
    line = {'SOURCE = "sample"': f'SOURCE = "{movielens / "ml-100k.zip"}"'}
    book = execute(NOTEBOOKS[0], tmp_path, line)
    text = [o.get("data", {}).get("text/plain", "") for o in shown(book)]
    assert any("<recray data ml-100k: 943 users" in line for line in text)
