"""One process calls the stages again and again, each with a Ray of its own or all with one."""

import json
import os
import subprocess
import sys

import pytest

from recray.runtime.ray_private import (
    AUTOSCALING,
    CLUSTERS,
    DASHBOARD_URL,
    DRAINING_NODES,
    FREE_RESOURCES,
    MESSAGES,
    NAMES,
    SERVE_CLIENT,
    SET_SERVE_CLIENT,
    TASK_WATCHES,
    TOKEN_MODE,
    TRAIN_CALLBACKS,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SCRIPT = """
import contextlib, json, logging, os, sys, threading
import recray
from recray.runtime import ray_private

stages, hidden, folder, port = json.loads(sys.argv[1])
logging.basicConfig(format="%(message)s")
SMALL = {"model.dim": 8, "train.epochs": 2}
find = ray_private.find

def find_others(name, instead):
    if name not in hidden:
        return find(name, instead)
    ray_private._say_missing(name, instead)

ray_private.find = find_others

def prepare(number):
    out = f"{folder}/prepared"
    return len(recray.prepare("sample", f"{out}-{number}" if os.path.exists(out) else out).items)

def train(number):
    run = recray.train(f"{folder}/prepared", f"{folder}/run-{number}", settings=SMALL)
    if not os.path.exists(f"{folder}/bundle"):
        run.export(f"{folder}/bundle")
    return len(run.history)

def tune(number):
    sweep = recray.tune(f"{folder}/prepared", f"{folder}/sweep-{number}", trials=2, seeds=0,
                        settings=SMALL, concurrent=2)
    return len(sweep.trials)

def serve(number):
    with recray.serve(f"{folder}/bundle", port=port) as service:
        return len(service.get("/v1/users/4/recommendations", k=3)["items"])

def run_stages():
    before = dict(os.environ)
    for number, name in enumerate(stages):
        if name == "session":
            session = recray.session()
        elif name == "close":
            session.close()
        else:
            results.append([name, globals()[name](number)])
    left.update({k: v for k, v in os.environ.items() if before.get(k) != v})

results, left = [], {}
if "thread" in stages:
    stages.remove("thread")
    runner = threading.Thread(target=run_stages)
    runner.start()
    runner.join()
else:
    run_stages()
print(json.dumps([results, sorted(left)]))
"""
EXPECTED = {"prepare": 1500, "train": 2, "tune": 2, "serve": 3}


@pytest.fixture(scope="module")
def made(tmp_path_factory, port):
    """Folder of a data set and a bundle."""
    folder = tmp_path_factory.mktemp("made")
    run_stages("prepare train", folder, port)
    return folder


def long_folder(folder) -> dict[str, str]:
    """A TMPDIR as some clusters have it: too long for the sockets of Ray."""
    path = folder / ("t" * 60)
    path.mkdir(exist_ok=True)
    return {"TMPDIR": str(path)}


def run_stages(stages: str, folder, port: int, hidden: tuple[str, ...] = ()) -> str:
    """Run the stages in one fresh process, without the hidden names; what it says on stderr."""
    arguments = json.dumps([stages.split(), hidden, str(folder), port])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, arguments],
        env={k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | long_folder(folder),
        capture_output=True, text=True, timeout=860,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results, changed = json.loads(done.stdout.splitlines()[-1])
    assert results == [[name, EXPECTED[name]] for name in stages.split() if name in EXPECTED], (
        done.stderr
    )
    # Without the private name Ray cannot forget the mode, so its variable stays.
    assert set(changed) == ({"RAY_AUTH_MODE"} if TOKEN_MODE in hidden else set())
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize(
    "stages",
    [
        "prepare train serve tune serve train tune prepare",
        "session prepare train serve serve tune close serve session serve close",
        "thread prepare train tune serve",
    ],
)
def test_stages_follow_each_other_in_any_order(stages, tmp_path, port):
    run_stages(stages, tmp_path, port)


# The names of one row have to do with different stages: none changes what another one does.
HIDDEN = (
    (TOKEN_MODE, TRAIN_CALLBACKS, SERVE_CLIENT, MESSAGES),
    (DASHBOARD_URL, SET_SERVE_CLIENT, CLUSTERS),
)
OF_CLUSTERS = (DRAINING_NODES, FREE_RESOURCES, AUTOSCALING)  # see tests/test_nodes.py
OF_TASKS = (TASK_WATCHES,)  # see test_tasks.py


def test_every_private_name_is_hidden_once():
    hidden = (*HIDDEN, OF_CLUSTERS, OF_TASKS)
    assert sorted(name for names in hidden for name in names) == sorted(NAMES)


@pytest.mark.parametrize("hidden", HIDDEN)
def test_without_private_names_of_ray_everything_runs(hidden, made, port, tmp_path):
    for kept in ("prepared", "bundle"):
        (tmp_path / kept).symlink_to(made / kept)
    said = run_stages("session train tune serve close serve", tmp_path, port, hidden).splitlines()
    for name in hidden:
        assert sum(name.replace(":", ".") in line for line in said) == 1, said
