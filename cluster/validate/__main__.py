"""`python -m cluster.validate`: a line for each file, exit 1 if one is wrong."""

import os
import sys
from pathlib import Path

from cluster.validate import docker, kuberay, launcher, serve
from cluster.validate.problems import Problem

FOLDER = Path(__file__).parents[1]
CRDS = "KUBERAY_CRDS"


def check(file: Path, definitions: Path | None) -> list[Problem] | None:
    """The problems of one file, by what its folder and name say it is; None if it is skipped."""
    if file.parent.name == "launcher":
        return launcher.check(file)
    if file.parent.name == "kuberay":
        return None if definitions is None else kuberay.check(file, definitions)
    if file.name == "Dockerfile":
        return docker.check_dockerfile(file, FOLDER.parent)
    if file.name == "compose.yaml":
        return docker.check_compose(file)
    return serve.check(file)


def files() -> list[Path]:
    """All files that are checked; a YAML file of no other kind must be a Serve config."""
    return sorted([*FOLDER.rglob("*.yaml"), FOLDER / "docker" / "Dockerfile"])


def definitions() -> Path | None:
    """Folder of KubeRay's definitions, None where the environment names none."""
    named = os.environ.get(CRDS)
    if not named:
        return None
    folder = Path(named)
    missing = [p for p in kuberay.KINDS.values() if not (folder / f"ray.io_{p}.yaml").is_file()]
    if missing:
        sys.exit(f"{CRDS}={named}: no file ray.io_{missing[0]}.yaml in this folder")
    return folder


def main() -> int:
    """Check every file and say so."""
    wrong, known = 0, definitions()
    for file in files():
        problems = check(file, known)
        name = file.relative_to(FOLDER.parent)
        if problems is None:
            print(f"skipped  {name} ({CRDS} names no folder of KubeRay's definitions)")
            continue
        print(f"{'wrong' if problems else 'ok':8} {name}")
        for problem in problems:
            print(f"         {problem.key}: {problem.message}")
        wrong += bool(problems)
    print(f"{wrong} of {len(files())} files are wrong" if wrong else "no file is wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
