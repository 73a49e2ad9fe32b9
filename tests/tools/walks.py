"""Count the files of recray that a reader meets on four walks, by a trace of real runs.

Run it with the recray that is to be counted first on the path; it names no module of recray, so
that commits whose packages differ can be compared:

    PYTHONPATH=. python tests/tools/walks.py
    PYTHONPATH=. python tests/tools/walks.py --json --only train

The walks are commands, on small generated data:

    prepare  a raw rating to a part file: `recray prepare` of a csv file
    train    a training batch: `recray train` by gradients with sampled negatives, one epoch
             with no validation
    get      `GET /v1/users/{id}/recommendations` of a running `recray serve`, and
    filter   the same with k and genres
    trial    `recray tune` of two trials, the second one suggested by the searcher

A file counts when one of its functions is called in any process of the walk: the command, the
workers of Ray, actors, replicas. Calls that are made while a module is being imported (decorators,
registries) do not count, and neither do modules of errors, schemas and settings: errors.py,
schema.py, config.py and config/.

How it is traced: a sitecustomize.py in a temporary folder on PYTHONPATH sets a profile function
(sys.setprofile, threading.setprofile) in every Python process that the command starts. It appends
the time and the file of each call to one log; a file that was logged less than WALK_GAP_S seconds
ago in the same process is left out, which by default logs each file once. For the requests the gap
is a millisecond: what was called between the sending of a request and the end of its reply is read
from the log. A service also calls functions that have nothing to do with a request, in the
background; so each request is sent several times, after others that warmed the service up, and
the reply with the fewest files counts.
"""

import argparse
import importlib.util
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNCOUNTED = ("errors.py", "schema.py", "config.py", "config")
"""The first part of a file's path in the package, or the file's own name."""
REQUESTS, WARM = 10, 20
START_SECONDS = 180
WALKS = ("prepare", "train", "get", "filter", "trial")
EPOCH = ("--set", "train.epochs=1")
NEGATIVES = ("objective.kind=logistic", "objective.negatives=4", "train.optimizer=adagrad")

TRACER = """
import os, sys, threading, time

PACKAGE = os.environ["WALK_PACKAGE"] + os.sep
GAP_S = float(os.environ["WALK_GAP_S"])
LOG = os.open(os.environ["WALK_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
FUNCTION = 1  # inspect.CO_OPTIMIZED: the code of a function, not of a module or a class
logged = {}


def importing(frame):
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def profile(frame, event, _argument):
    code = frame.f_code
    if event != "call" or not code.co_filename.startswith(PACKAGE) or not code.co_flags & FUNCTION:
        return
    now = time.monotonic()
    if now - logged.get(code.co_filename, -GAP_S) < GAP_S or importing(frame):
        return
    logged[code.co_filename] = now
    os.write(LOG, f"{now} {code.co_filename[len(PACKAGE):]}\\n".encode())


def begin():
    logged.clear()


os.register_at_fork(after_in_child=begin)
threading.setprofile(profile)
sys.setprofile(profile)
"""


class Trace:
    """A folder with the tracer, and the log of what is started with its environment.

    Args:
        folder: Where both lie.
        gap_s: A file is not logged again within so many seconds.
    """

    def __init__(self, folder: Path, gap_s: float = float("inf")) -> None:
        folder.mkdir()
        self.log = folder / "log"
        self.log.touch()
        (folder / "sitecustomize.py").write_text(TRACER)
        package = package_folder()
        path = os.pathsep.join([str(folder), str(package.parent)])
        self.environment = os.environ | {
            "PYTHONPATH": path,
            "WALK_PACKAGE": str(package),
            "WALK_LOG": str(self.log),
            "WALK_GAP_S": str(gap_s),
        }

    def files(self, begin: float = 0.0, end: float = float("inf")) -> set[str]:
        """The files that count, of those that were logged between two times."""
        found = set()
        for line in self.log.read_text().splitlines():
            seconds, name = line.split(" ", 1)
            parts = Path(name).parts
            if begin <= float(seconds) <= end and not {parts[0], parts[-1]} & set(UNCOUNTED):
                found.add(name)
        return found


def package_folder() -> Path:
    """The folder of the recray that commands will import."""
    spec = importlib.util.find_spec("recray")
    if spec is None or spec.origin is None:
        raise SystemExit("no recray on the path: set PYTHONPATH")
    return Path(spec.origin).resolve().parent


def command(*words: str | Path) -> list[str]:
    """The words of a call of recray."""
    return [sys.executable, "-m", "recray", *map(str, words)]


def traced(folder: Path, *words: str | Path) -> set[str]:
    """The files that a command visits.

    Raises:
        SystemExit: It failed.
    """
    trace = Trace(folder / f"trace-{words[0]}")
    done = subprocess.run(
        command(*words), cwd=folder, env=trace.environment, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"recray {' '.join(map(str, words))}: {done.stderr[-3000:]}")
    return trace.files()


def plain(folder: Path, *words: str | Path) -> None:
    """Run a command that only makes what a walk needs."""
    environment = os.environ | {"PYTHONPATH": str(package_folder().parent)}
    subprocess.run(
        command(*words), cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL
    )


# ------------------------------------------------------------------------------------ walks


def prepare(folder: Path) -> set[str]:
    """A csv file of 40 users, 60 items and about 1,000 ratings."""
    rng = random.Random(0)
    lines = ["userId,movieId,rating,timestamp"]
    for user in range(1, 41):
        for item in sorted(rng.sample(range(1, 61), 25)):
            lines.append(f"{user},{item},{rng.randint(1, 10) / 2},{10**9 + rng.randrange(10**8)}")
    (folder / "ratings.csv").write_text("\n".join(lines) + "\n")
    return traced(folder, "prepare", "ratings.csv", "--out", "from-csv")


def train(folder: Path) -> set[str]:
    """One epoch without validation: the set-up, and the batches."""
    plain(folder, "prepare", "sample", "--out", "whole", "--set", "split.valid=0")
    options = ["--preset", "dot-mse", *EPOCH]
    for setting in (*NEGATIVES, "train.patience=null"):
        options += ["--set", setting]
    return traced(folder, "train", "whole", "--out", "run-whole", *options)


def trial(folder: Path) -> set[str]:
    """Two trials: those of the preset itself, and of what the searcher suggests."""
    plain(folder, "prepare", "sample", "--out", "searched")
    options = ("--trials", "2", "--searcher", "tpe", "--seeds", "0", *EPOCH)
    return traced(folder, "tune", "searched", "--out", "sweep", *options)


def requests(folder: Path) -> dict[str, set[str]]:
    """The files of a plain request, and of one with a filter."""
    plain(folder, "prepare", "sample", "--out", "served")
    plain(folder, "train", "served", "--out", "run-served", *EPOCH)
    plain(folder, "export", "run-served", "--out", "bundle")
    with service(folder, Trace(folder / "trace-serve", gap_s=0.001)) as (url, trace):
        queries = {"get": "", "filter": "?k=5&genres=Drama"}
        for user in range(1, WARM + 1):
            for query in queries.values():
                fetch(f"{url}/v1/users/{user}/recommendations{query}")
        found: dict[str, list[set[str]]] = {name: [] for name in queries}
        for user in range(WARM + 1, WARM + REQUESTS + 1):
            for name, query in queries.items():
                time.sleep(0.1)
                begin = time.monotonic()
                fetch(f"{url}/v1/users/{user}/recommendations{query}")
                found[name].append(trace.files(begin, time.monotonic()))
    return {name: min(several, key=len) for name, several in found.items()}


@contextmanager
def service(folder: Path, trace: Trace) -> Iterator[tuple[str, Trace]]:
    """A traced `recray serve`; it answers inside the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = command("serve", "bundle", "--port", str(port))
    process = subprocess.Popen(words, cwd=folder, env=trace.environment, stdout=subprocess.DEVNULL)
    url, end = f"http://127.0.0.1:{port}", time.monotonic() + START_SECONDS
    try:
        while True:
            try:
                fetch(f"{url}/readyz")
                break
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit("recray serve does not answer") from None
                time.sleep(0.5)
        yield url, trace
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def fetch(url: str) -> bytes:
    """The body of a reply, which must be 200."""
    with urllib.request.urlopen(url, timeout=30) as reply:
        body: bytes = reply.read()
    return body


def main() -> None:
    """Run the walks and print how many files each visits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="Print one JSON object, with names.")
    parser.add_argument("--only", choices=WALKS, action="append", help="Leave out other walks.")
    options = parser.parse_args()
    wanted, found = options.only or WALKS, dict[str, set[str]]()
    with tempfile.TemporaryDirectory(prefix="recray-walks-") as name:
        folder = Path(name)
        if "prepare" in wanted:
            found["prepare"] = prepare(folder)
        if "train" in wanted:
            found["train"] = train(folder)
        if {"get", "filter"} & set(wanted):
            found |= requests(folder)
        if "trial" in wanted:
            found["trial"] = trial(folder)
    if options.json:
        walks = {name: {"files": len(f), "names": sorted(f)} for name, f in found.items()}
        print(json.dumps({"package": str(package_folder()), "walks": walks}))
        return
    print(f"{'walk':<10}files  of {package_folder()}")
    for name, files in found.items():
        print(f"{name:<10}{len(files):>5}")


if __name__ == "__main__":
    main()
