"""The wheel and the source archive are whole, and the wheel runs in an environment of its own."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import recray

ROOT = Path(__file__).parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def files_of_the_package() -> set[str]:
    """Every file below recray/ but what Python itself writes there."""
    paths = (ROOT / "recray").rglob("*")
    return {
        path.relative_to(ROOT).as_posix()
        for path in paths
        if path.is_file() and "__pycache__" not in path.parts
    }


def run(*command: object, **options) -> str:
    """What a command printed; without the paths that would show it this checkout."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    """Folder of a wheel and a source archive, built from a copy without the network."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("dist")
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "recray", copy / "recray")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, copy, cwd=copy)
    return out


@pytest.fixture(scope="module")
def installed(dist, tmp_path_factory) -> Path:
    """The commands of a fresh environment with the wheel; it borrows the packages of this one."""
    folder = tmp_path_factory.mktemp("venv")
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    (wheel,) = dist.glob("*.whl")
    python = folder / "bin" / "python"
    install = ["install", "--quiet", "--no-deps", "--no-index", wheel]
    run(sys.executable, "-m", "pip", "--python", python, *install)
    purelib = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    # A path in a .pth file comes after the environment's own packages, so the wheel goes first.
    Path(purelib, "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "bin"


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(dist):
    (wheel,) = dist.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    info = f"recray-{recray.__version__}.dist-info/"
    assert {name for name in names if not name.startswith(info)} == files_of_the_package()
    assert f"{info}licenses/LICENSE" in names


def test_the_source_archive_holds_every_file_of_the_package(dist):
    (archive,) = dist.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert files_of_the_package() | {"pyproject.toml", "README.md", "LICENSE"} <= names


def test_the_installed_commands_answer(installed, tmp_path):
    command = installed / "recray"
    where = run(installed / "python", "-c", "import recray; print(recray.__file__)", cwd=tmp_path)
    assert Path(where).is_relative_to(installed.parent)
    assert recray.__version__ in run(command, "--version", cwd=tmp_path)
    assert "prepare" in run(command, "--help", cwd=tmp_path)
    assert "neumf-ranking" in run(command, "presets", cwd=tmp_path)
    assert "600 users" in run(command, "data", "describe", "sample", cwd=tmp_path)
