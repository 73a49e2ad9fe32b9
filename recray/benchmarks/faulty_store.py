"""A store that is slow and fails now and then: prepare, train, a kill and a resume lose nothing."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from recray.benchmarks.counted_store import BUCKET, counted_store
from recray.benchmarks.counting_proxy import Proxy
from recray.benchmarks.harness import Figures, Row, session_of, start_recray
from recray.benchmarks.store_alone import Lab
from recray.data.dataset import Prepared
from recray.errors import RecrayError
from recray.training.checkpoint import RunFolder

FAIL_SHARE, DELAY_S = 0.05, 0.03
TRAIN = (
    *("--preset", "dot-mse", "--set", "train.epochs=8", "--set", "train.patience=null"),
    *("--workers", "2", "--out"),
)
KILLED_AFTER = 2
"""Epochs that the store has been told of when the run is killed."""


class Faulty(Row):
    """What a job met with."""

    figure: str
    requests: int
    failed: int
    seconds: float
    same_files: bool
    same_weights: bool


def faulty_store(lab: Lab) -> tuple[Figures, Sequence[Row]]:
    """Do the same on a disk and through a faulty store, and compare every byte; not if quick."""
    if not lab.sizes.trained:
        return {"faulty_store_ok": None}, []
    calm, far = lab.folder / "calm", f"s3://{BUCKET}/faulty"
    with counted_store() as proxy:
        _well("prepare", "sample", "--out", calm / "prepared")
        _well("train", calm / "prepared", *TRAIN, calm / "run")
        begin = time.perf_counter()
        with proxy.watch() as traffic:
            proxy.fail_share, proxy.delay_s = FAIL_SHARE, DELAY_S
            _well("prepare", "sample", "--out", f"{far}/prepared")
            _train_killed_once(proxy, f"{far}/prepared", f"{far}/run")
            proxy.fail_share = proxy.delay_s = 0.0
        seconds = time.perf_counter() - begin
        files = [
            Prepared.open(f"{folder}/prepared", verify=True).manifest["files"]
            for folder in (calm, far)
        ]
        weights = [RunFolder(f"{folder}/run").best().weights for folder in (calm, far)]
    row = Faulty(
        figure="faulty_store_ok",
        requests=len(traffic.requests),
        failed=traffic.failed(),
        seconds=round(seconds, 1),
        same_files=files[0] == files[1],
        same_weights=all(bool((own == weights[1][n]).all()) for n, own in weights[0].items()),
    )
    lab.log(f"a faulty store: {row.failed} of {row.requests} requests failed")
    return {"faulty_store_ok": float(row.same_files and row.same_weights and row.failed > 0)}, [row]


def _train_killed_once(proxy: Proxy, prepared: str, run: str) -> None:
    with proxy.watch() as traffic:
        training = start_recray("train", prepared, *TRAIN, run)
        told = f"{run.removeprefix('s3://')}/epochs.json"
        while traffic.count("PUT", below=told) < KILLED_AFTER:
            if training.poll() is not None:
                raise RecrayError(f"the run ended before it was killed: {_said(training)}")
            time.sleep(0.05)
    os.killpg(training.pid, signal.SIGKILL)
    training.communicate()
    for pid in session_of(training.pid):
        os.kill(pid, signal.SIGKILL)
    if RunFolder(run).finished:
        raise RecrayError("the run was killed too late to show anything")
    _well("train", prepared, *TRAIN, run, "--resume")


def _well(*words: str | Path) -> None:
    """Run a command.

    Raises:
        RecrayError: It failed; with what it said.
    """
    running = start_recray(*words)
    said = _said(running)
    if running.returncode:
        raise RecrayError(f"recray {words[0]} ended with {running.returncode}: {said}")


def _said(running: subprocess.Popen[str]) -> str:
    """The last line on stderr, when it has ended."""
    _, errors = running.communicate()
    return (errors.strip().splitlines() or [""])[-1]
