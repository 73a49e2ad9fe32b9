"""The stages in a row, each skipped when its output is there and matches: what `recray up` runs."""

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pydantic import ConfigDict, JsonValue

from recray.config import Settings
from recray.data import ingest, manifest
from recray.data.dataset import Prepared
from recray.data.ids import RawId
from recray.data.source import Source
from recray.errors import RecrayError
from recray.evaluation import evaluator
from recray.evaluation.other_bundles import other_bundles
from recray.evaluation.protocol import FULL_RANKING, Protocol
from recray.evaluation.report import EvaluationReport, Measured, parse_report
from recray.inference.bundle import Bundle
from recray.inference.recommender import Recommender
from recray.progress import Log
from recray.reporting.data_text import remarks
from recray.reporting.terminal import evaluation
from recray.runtime.nodes import wait_for_capacity
from recray.runtime.session import LOCAL, require_local, session, workers_at
from recray.runtime.worker_range import WorkerRange
from recray.serving import deployment, verify
from recray.serving.options import ServiceOptions, limits_with_own_key
from recray.serving.ray_serve import refuse_taken_port
from recray.serving.registry import Registry
from recray.serving.verify import Verification
from recray.storage import Folder
from recray.training import model_selection
from recray.training.callbacks import Callbacks, OnEpoch, OnStart, TensorBoard
from recray.training.export import Fits, export, same_bundle
from recray.training.run_metadata import ModelSelection


def evaluate(
    bundle_path: str,
    changes: Mapping[str, JsonValue] | None = None,
    prepared_path: str | None = None,
    workers: int = 1,
    address: str = LOCAL,
    protocol: Protocol = FULL_RANKING,
    others: Sequence[str] = (),
) -> EvaluationReport:
    """Measure a bundle on its hold-out with the given number of workers.

    Args:
        bundle_path: The bundle.
        changes: Evaluate settings that differ from the bundle's own.
        prepared_path: If given, must be the very data set the bundle was trained on.
        workers: Ray Data tasks; the digits do not depend on them.
        address: Ray cluster.
        protocol: What is measured, and beside what.
        others: Folders of bundles that are measured beside it, on the same targets.

    Raises:
        RecrayError: The prepared data set is another one, or has changed since; the file of
            candidates cannot be used; another bundle has other targets.
    """
    bundle = Bundle.open(bundle_path)
    protocol = replace(protocol.resolved(bundle), others=other_bundles(bundle, others))
    if prepared_path is not None:
        prepared = Prepared.open(prepared_path, verify=True)
        if prepared.manifest["fingerprints"] != bundle.config["fingerprints"]:
            raise RecrayError(
                f"{prepared.folder} ({prepared.manifest['dataset']}) is not what {bundle_path} was "
                f"trained on ({bundle.config['dataset']}), or it has changed since"
            )
    settings = bundle.settings.changed(evaluate=changes or {}).evaluate
    if workers == 1 and address == LOCAL:  # no need to start Ray: the digits are the same
        return evaluator.evaluate(bundle, settings, protocol)
    return evaluator.evaluate_on_ray(bundle, settings, workers, address, protocol)


@dataclass
class Stages:
    """The stages from a source to a bundle, in one folder; each is skipped where it is done.

    Args:
        out: Folder that holds prepared, run and bundle.
        settings: The resolved settings.
        workers: Training processes, or a range of them.
        address: Ray cluster.
        log: Receives what happens, one line at a time.
        on_epoch: Receives each epoch's metrics.
        fits: Which fits follow on the run, for its measurement and for its release.
        on_start: Receives how many epochs follow at most, and the metric to show.
    """

    out: Folder
    settings: Settings
    workers: int | WorkerRange
    address: str
    log: Log
    on_epoch: OnEpoch | None = None
    fits: Fits = "final"
    on_start: OnStart | None = None

    def __post_init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.selection: ModelSelection | None = None

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Note how many seconds the block takes, under the name of its stage."""
        begin = time.perf_counter()
        yield
        self.seconds[stage] = round(time.perf_counter() - begin, 3)

    def prepare(self, source: Source) -> Prepared:
        """Prepare the source, unless the folder holds just that."""
        with self.timed("prepare"):
            folder = self.out.child("prepared")
            if folder.published():
                before = Prepared.open(folder.path)
                if manifest.same_settings(before, source, self.settings):
                    self.log(f"prepare: {folder} is there and matches")
                    return before
            self.log(f"prepare: {source.name} into {folder}")
            made = ingest.prepare(source, folder.path, self.settings, self.address, replace=True)
            for line in remarks(made.manifest):
                self.log(f"prepare: {line}")
            return made

    def train(self, prepared: Prepared) -> str:
        """Train on the data set, and return the folder of the run."""
        with self.timed("train"):
            folder = self.out.child("run")
            paths, at = (prepared.folder.path, folder.path), self.address
            model_selection.clear_outdated(folder, self.settings, prepared, self.workers, at)
            words = "is there and matches" if folder.published() else f"{self.settings.preset}"
            self.log(f"train: {folder} {words}")
            loggers = (TensorBoard,) if self.on_epoch else ()
            calls = Callbacks(self.log, self.on_epoch, loggers, self.on_start)
            summary = model_selection.train(self.settings, *paths, self.workers, True, at, calls)
            self.selection = summary.selection
            return folder.path

    def export(self, run: str, prepared: Prepared) -> Bundle:
        """Fit again, measure and export the run, unless the folder holds just that."""
        with self.timed("evaluate"):
            folder = self.out.child("bundle")
            if same_bundle(folder, run, prepared, self.fits):
                self.log(f"evaluate: {folder} is there and matches")
                return Bundle.open(folder.path)
            again = "" if self.fits == "none" else "fit again, then "
            self.log(f"evaluate: {again}measure on the test split")
            return export(run, folder.path, True, self.fits, self.address, self.log)

    def run(self, source: Source) -> tuple[Prepared, Bundle]:
        """Prepare the source, train on it, and export, where the cluster has room."""
        wait_for_capacity(workers_at(self.workers, self.address).start)
        prepared = self.prepare(source)
        return prepared, self.export(self.train(prepared), prepared)


class Staged(Measured):
    """A bundle that went through all stages."""

    model_config = ConfigDict(use_attribute_docstrings=True)
    bundle: str
    """Its folder."""
    seconds: dict[str, float]
    """By stage."""
    selection: ModelSelection | None = None
    """How its model was chosen, where there were several (train.choose_from)."""


class Release(Staged):
    """A bundle that was trained, measured, and promoted unless it was worse than the live one.

    Args:
        registry: Folder of the versions.
        version: Its version.
        before: The version that was live; None where nothing was promoted, or nothing was live.
        promoted: Whether it is the live version now.
        verdict: Why, in words.
    """

    registry: str
    version: str
    before: str | None = None
    promoted: bool
    verdict: str

    def text(self) -> str:
        """The end of `recray pipeline`: the metrics, whether it was promoted, and the seconds."""
        done = "promoted" if self.promoted else "NOT promoted"
        return "\n".join(
            [
                "",
                evaluation(self.evaluation),
                "",
                f"version {self.version} {done}: {self.verdict}",
                _seconds(self.seconds),
                f"bundle: {self.bundle}",
                f"registry: {self.registry}  (recray serve {self.registry})",
            ]
        )


class Running(Staged):
    """A bundle that answers at a URL, and the comparison of its answers with offline ones.

    Args:
        prepared: Folder of the data set.
        url: Address of the service.
        verified: Whether no answer differs.
        verification: The comparison.
        example_user: A user of the data set.
    """

    prepared: str
    url: str
    verified: bool
    verification: Verification
    example_user: RawId

    def text(self) -> str:
        """The end of `recray up`: the metrics, the seconds of each stage, and what to try next."""
        check = self.verification
        verified = (
            f"HTTP answers equal offline ones for {check.users} users"
            if self.verified
            else f"HTTP ANSWERS DIFFER: {'; '.join(check.differences[:3])}"
        )
        url, bundle, user = self.url, _short(self.bundle), self.example_user
        steps = {
            "look at one user": f"recray explain {bundle} --user {user}",
            "see it all": f"recray report {bundle} --open",
            "search settings": f"recray tune {_short(self.prepared)} --out sweeps/first",
            "serve it again": f"recray serve {bundle}",
        }
        width = max(map(len, steps))
        return "\n".join(
            [
                "",
                evaluation(self.evaluation),
                "",
                f"{verified}; {_seconds(self.seconds)}",
                f"bundle: {self.bundle}",
                f"page: {url}  (documentation: {url}/docs)",
                f"try: curl '{url}/v1/users/{user}/recommendations?k=5'",
                "",
                "next, in another terminal or after Ctrl-C:",
                *(f"  {words.ljust(width)}  {line}" for words, line in steps.items()),
            ]
        )


def _seconds(stages: dict[str, float]) -> str:
    return ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in stages.items())


def _short(path: str) -> str:
    """A path as one would type it in the current folder."""
    if "://" in path:
        return path
    near = os.path.relpath(path)
    return path if near.startswith("..") else near


def release(
    source: Source, stages: Stages, registry: str | None = None, force: bool = False
) -> Release:
    """Prepare, train, evaluate, and make the bundle current in a registry if it is not worse.

    Args:
        source: The ratings, with or without those of a ratings log.
        stages: The settings, and the folder of all outputs; a job that is run again goes on with
            what it finds there.
        registry: Folder of the versions; by default the one in the folder of outputs.
        force: Promote it even if it is worse.

    Raises:
        RecrayError: What the user can fix, of any stage.
    """
    if stages.address == LOCAL:
        require_local(workers_at(stages.workers, LOCAL).most)
    with session(stages.address):
        _, bundle = stages.run(source)
    versions = Registry(registry or stages.out.child("registry").path)
    with stages.timed("promote"):
        outcome = versions.add_and_promote(bundle.folder.path, force)
        stages.log(f"promote: {outcome.verdict}")
    return Release(
        bundle=bundle.folder.path,
        registry=versions.folder.path,
        evaluation=parse_report(bundle.metrics),
        seconds=stages.seconds,
        selection=stages.selection,
        **vars(outcome),
    )


@contextlib.contextmanager
def up(source: Source, stages: Stages, host: str, port: int) -> Iterator[Running]:
    """Run every stage, serve, check the service against the bundle, and serve while the block runs.

    Args:
        source: The ratings.
        stages: The settings, and the folder of all outputs.
        host: Interface to bind.
        port: HTTP port.

    Raises:
        RecrayError: What the user can fix, of any stage.
    """
    if stages.address == LOCAL:
        require_local(workers_at(stages.workers, LOCAL).most)
        refuse_taken_port(host, port)
    own, limits = limits_with_own_key(host, "recray-up")  # keys are checked before the long work
    with session(stages.address):
        prepared, bundle = stages.run(source)
        begin = time.perf_counter()
        stages.log(f"serve: http://{host}:{port}")
        # The log is named by the data set, since the folder may be used for another one later.
        log = ServiceOptions(stages.out.child("ratings").child(bundle.config["dataset"]).path)
        path, at = bundle.folder.path, stages.address
        running = deployment.serving(
            path, host, port, 1, at, limits, options=log, ends_with_ray=at == LOCAL
        )
        with running as url:
            checked = verify.verify(url, Recommender(bundle), key=own)
            stages.seconds["serve"] = round(time.perf_counter() - begin, 3)
            yield Running(
                prepared=prepared.folder.path,
                bundle=path,
                url=url,
                verified=checked.verified,
                verification=checked,
                evaluation=parse_report(bundle.metrics),
                seconds=stages.seconds,
                example_user=bundle.user_ids.raw[:1].tolist()[0],
                selection=stages.selection,
            )
