"""The floors of the house: who may import whom, where Ray lives, and what importing loads."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "recray"

# Lowest first; a module may import from its own floor and below.
FLOORS = [
    ["errors", "patience", "tables", "parquet", "terminal"],
    ["schema", "config", "storage"],
    ["data", "metrics"],
    ["feedback", "feedback_source"],
    ["models"],
    ["objectives"],
    ["training", "bundle", "sweep"],
    ["topk", "ranking", "filters", "titles", "items", "directions", "why", "lists"],
    ["quick", "recommender"],
    ["measuring", "significance", "baselines", "protocol", "slices", "explain"],
    ["evaluation"],
    ["registry"],
    ["cluster", "nodes"],
    ["training.rows", "training.grow", "training.preflight"],
    ["data.ingest", "training.trainer", "batch"],
    ["sweep.trial", "sweep.order", "sweep.resume", "sweep.export", "sweep.team"],
    ["tuning", "serving", "jobs", "doctor"],
    ["pipeline"],
    ["pictures.search"],
    ["crossvalidation", "champion", "refresh"],
    ["benchmarks"],
    ["console"],
    ["frames", "pictures"],
    ["document"],
    ["report"],
    ["loaded", "results", "library"],
    ["cli", "__init__"],
    ["__main__"],
]
RAY_HOMES = {
    "data/ingest.py",
    "batch.py",
    "training/trainer.py",
    "tuning.py",
    "serving/deployment.py",
    "cluster.py",
    "nodes.py",
    "jobs.py",
    "doctor.py",
    "sweep/team.py",  # Train inside a trial
    "benchmarks/textbook.py",  # what recray is compared with
    "benchmarks/stage.py",  # workers of Ray Train that take turns
    "benchmarks/serve.py",  # likewise, an empty deployment
}


def modules() -> dict[str, Path]:
    """Dotted name below recray to file."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        found[name] = path
    return found


def imports(path: Path) -> set[str]:
    """Every module that a file imports, imports inside functions and for typing included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def floor(module: str) -> int:
    """The floor of a module: its longest listed prefix."""
    listed = {name: number for number, names in enumerate(FLOORS) for name in names}
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in listed:
            return listed[".".join(parts[:length])]
    raise AssertionError(f"recray.{module} is on no floor")


@pytest.mark.parametrize("module", modules())
def test_imports_point_down(module):
    own = floor(module)
    for name in imports(modules()[module]):
        target = name.removeprefix("recray.")
        if name.startswith("recray.") and target in modules():
            assert floor(target) <= own, f"recray.{module} imports {name}, which is above it"


def test_ray_is_imported_in_its_homes_only():
    users = {
        path.relative_to(PACKAGE).as_posix()
        for path in modules().values()
        if any(name.split(".")[0] == "ray" for name in imports(path))
    }
    assert users <= RAY_HOMES


def test_a_module_reads_in_one_sitting():
    long = {
        name: len(path.read_text().splitlines())
        for name, path in modules().items()
        if len(path.read_text().splitlines()) > 480
    }
    assert not long


def loaded_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_importing_recray_loads_neither_ray_nor_torch():
    assert not {"ray", "torch"} & loaded_after("import recray")


def test_the_functions_of_recray_are_there_and_load_ray_when_called_only():
    code = (
        "import recray\nassert {'prepare', 'tune'} <= set(dir(recray))\nrecray.train, recray.load"
    )
    assert not {"ray", "matplotlib"} & loaded_after(code)


def test_help_loads_neither_ray_nor_torch():
    code = "from recray.cli import cli\ntry:\n    cli(['--help'])\nexcept SystemExit:\n    pass"
    assert not {"ray", "torch", "pandas"} & loaded_after(code)


CORE = (
    "recommender",
    "evaluation",
    "registry",
    "measuring",
    "training.loop",
    "serving.api",
    "serving.protection",
    "serving.verify",
    "sweep.desk",
    "sweep.order",
)


def test_the_core_runs_without_ray():
    lines = (f"import recray.{name}; assert 'ray' not in sys.modules, '{name}'" for name in CORE)
    assert "ray" not in loaded_after("\n".join(lines))
