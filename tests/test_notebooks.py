"""The notebooks as they lie in the repository: stories without outputs that define nothing."""

import ast
import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code(path: Path) -> list[str]:
    cells = json.loads(path.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_all_six_are_there():
    names = ["01_data", "02_models", "03_training_on_ray", "04_search", "05_serving", "06_next"]
    assert [path.stem for path in NOTEBOOKS] == names


@every_notebook
def test_it_is_committed_without_outputs(path):
    for cell in json.loads(path.read_text())["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@every_notebook
def test_it_calls_recray_and_defines_nothing(path):
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    for source in code(path)[1:]:
        nodes = list(ast.walk(ast.parse(source)))
        assert not [node for node in nodes if isinstance(node, definitions)]
        imports = [node for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom))]
        assert all(ast.unparse(node) == "import recray" for node in imports)


@every_notebook
def test_its_first_cells_install_and_choose_the_data_in_one_line(path):
    first, second, *_ = code(path)
    assert "%pip install --quiet recray" in first
    assert second.startswith('import recray\n\nSOURCE = "sample"')


@every_notebook
def test_it_tells_a_story_between_its_cells(path):
    cells = json.loads(path.read_text())["cells"]
    told = sum(cell["cell_type"] == "markdown" for cell in cells)
    assert cells[0]["source"][0].startswith("# ")
    assert told >= len(cells) / 5
