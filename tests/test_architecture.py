"""The packages of the house: who may import whom, where Ray lives, and what importing loads."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "recray"

# A package or loose module imports only what stands left of it in this list, and itself.
ORDER = (
    "errors schema progress config storage runtime data models inference evaluation training "
    "tuning serving reporting pipelines api results benchmarks cli __init__ __main__"
).split()
# Packages that may import Ray, and the modules elsewhere that do something for all users at once.
RAY_HOMES = ("runtime", "data.ray_data", "training", "tuning", "serving", "benchmarks")
RAY_HOMES += ("inference.batch", "pipelines.node_facts")
MODULE_LINES, FUNCTION_LINES = 350, 40


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


def home(module: str) -> str:
    """The package, or the loose module, that a dotted name belongs to."""
    name = module.split(".")[0]
    assert name in ORDER, f"recray.{name} stands nowhere in ORDER"
    return name


@pytest.mark.parametrize("module", modules())
def test_a_package_imports_only_what_stands_left_of_it(module):
    for name in imports(modules()[module]):
        target = name.removeprefix("recray.")
        if name.startswith("recray.") and target in modules():
            assert ORDER.index(home(target)) <= ORDER.index(home(module)), (
                f"recray.{module} imports {name}, whose package stands right of its own"
            )


def test_table_of_packages(capsys):
    """Print the packages in their order; `pytest -k table` shows it."""
    lines = {name: [0, 0] for name in ORDER}
    for module, path in modules().items():
        lines[home(module)][0] += 1
        lines[home(module)][1] += len(path.read_text().splitlines())
    with capsys.disabled():
        print(
            "\n".join(["", *(f"{n:12} {m:3} modules {k:6,} lines" for n, (m, k) in lines.items())])
        )
    assert all(count for count, _ in lines.values()), "ORDER names a package that is not there"


def test_few_modules_lie_loose():
    loose = {name for name, path in modules().items() if path.parent == PACKAGE}
    assert len(loose) <= 8, loose


def test_ray_is_imported_in_its_homes_only():
    users = {
        name
        for name, path in modules().items()
        if any(imported.split(".")[0] == "ray" for imported in imports(path))
    }
    strangers = {u for u in users if not any(f"{u}.".startswith(f"{h}.") for h in RAY_HOMES)}
    assert not strangers


# Dotted names of Ray with a part that begins with an underscore, and what else it does not promise.
PRIVATE = re.compile(
    r"\bray(?:\.\w+)*\._(?!_)\w+|\bray\.serve\.context\b|_create_default_callbacks"
)
SWITCH = re.compile(r"[\"']((?:RAY|TUNE)_\w+)[\"']")
DOCUMENTED = {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"}
DOCUMENTED |= {"RAY_API_SERVER_ADDRESS"}


@pytest.mark.parametrize(
    ("names", "module"), [(PRIVATE, "runtime.ray_private"), (SWITCH, "runtime.ray_switches")]
)
def test_private_names_of_ray_stand_in_one_module_and_its_switches_in_another(names, module):
    found = {
        name: used
        for name, path in modules().items()
        if (used := {*names.findall(path.read_text())} - DOCUMENTED)
    }
    assert set(found) == {module}, found


def test_a_module_and_a_function_read_in_one_sitting():
    for name, path in modules().items():
        text = path.read_text()
        assert len(text.splitlines()) <= MODULE_LINES, name
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                assert lines <= FUNCTION_LINES, f"{name}.{node.name}"


def test_few_values_are_dicts_of_anything():
    untyped = re.compile(r"(?:dict|Mapping)\[str, (?:Any|object)\]")
    found = {name: len(untyped.findall(path.read_text())) for name, path in modules().items()}
    assert sum(found.values()) < 60, {name: count for name, count in found.items() if count}


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
    "inference.recommender",
    "evaluation.evaluator",
    "serving.registry",
    "training.loop",
    "serving.app",
    "serving.guard",
    "serving.verify",
    "tuning.driver",
    "tuning.request",
)


def test_the_core_runs_without_ray():
    lines = (f"import recray.{name}; assert 'ray' not in sys.modules, '{name}'" for name in CORE)
    assert "ray" not in loaded_after("\n".join(lines))
