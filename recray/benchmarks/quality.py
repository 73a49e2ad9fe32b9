"""Quality: presets under published protocols, what lists show, and what `recray up` leaves."""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from recray.benchmarks import served, taste
from recray.benchmarks.experiments import RANDOM_80, Experiment, Lab, rounded
from recray.benchmarks.harness import Figures, Measurement, Row
from recray.config import Settings, load_settings
from recray.errors import unknown_name
from recray.evaluation.evaluator import evaluate
from recray.evaluation.fold_in import KNOWN
from recray.evaluation.protocol import Protocol
from recray.inference.bundle import Bundle
from recray.pipelines import repetition
from recray.pipelines.repetition import Fold
from recray.progress import Log
from recray.runtime.session import session

PER_ITEM = ("split.kind=per-item-random", "split.test=0.25", "split.valid=0.1")
U1 = ("split.valid=0.1",)
CORE_10 = (
    "data.min_rating=3",
    "data.core=10",
    "split.kind=per-user-random",
    "split.test=0.1",
    "split.valid=0.1",
)
# Where any rating is a hit, whatever its stars, any rating is a like.
ANY_RATING = "objective.preference=binary"
# How much vectors shrink is chosen on validation rows, and it depends on the size of the data.
SMALL = ("train.l2=0.02", "objective.unobserved_weight=0.2", ANY_RATING)
WIDER = ("train.l2=0.015", "objective.unobserved_weight=0.3", "model.dim=128", ANY_RATING)
LARGER = ("train.l2=0.01", "objective.unobserved_weight=0.3", "model.dim=128", ANY_RATING)
# The same where vectors start from exact solves.
START_SMALL = ("train.als_pretrain_l2=0.02", "objective.unobserved_weight=0.2", ANY_RATING)
START_LARGER = ("train.als_pretrain_l2=0.01", "objective.unobserved_weight=0.3", ANY_RATING)


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Args:
        figure: Name of its number; "" for a row that only others are compared with.
        data: A release.
        preset: The recipe.
        settings: What the protocol sets.
        metric: What is measured.
        seeds: Repetitions; 0 for given folds.
        must: The bar, None if there is none of its own.
        peer: The best published number that we know of, with its source.
        folds: How many of the given folds u1 to u5.
    """

    figure: str
    data: str
    preset: str
    settings: tuple[str, ...]
    metric: str
    seeds: int
    must: float | None
    peer: str
    folds: int = 5


def _on_u1(preset: str, must: float, *settings: str) -> Case:
    """A seed's recipe on ml-100k's first given fold."""
    peer = "0.933 SVD++ (Surprise); 0.9575 biases alone"
    figure = f"rmse_u1_{preset}"
    return Case(figure, "ml-100k", preset, (*U1, *settings), "rmse", 0, must, peer, folds=1)


CASES = (
    Case(
        "rmse_100k_u1_u5", "ml-100k", "rating", ("split.valid=0",), "rmse", 0, 0.915,
        "0.919 SVD++ (Surprise, 5 folds)",
    ),
    Case(
        "recall10_100k", "ml-100k", "ranking", (*RANDOM_80, *WIDER), "recall@10", 5, 0.2438,
        "0.2416 logistic MF (Recommenders.jl)",
    ),
    Case(
        "ndcg10_100k_per_item", "ml-100k", "ranking", (*PER_ITEM, *SMALL), "ndcg@10", 5, 0.465,
        "0.4751 BiVAE (Microsoft Recommenders)",
    ),
    Case(
        "neumf_100k", "ml-100k", "neumf-ranking", (*PER_ITEM, *START_SMALL), "ndcg@10", 5, None,
        "0.3961 NCF",
    ),
    Case(
        "softmax_100k", "ml-100k", "softmax-dnn-ranking", (*PER_ITEM, ANY_RATING), "ndcg@10", 5,
        None, "",
    ),
    Case("dot_mse_100k", "ml-100k", "dot-mse", RANDOM_80, "recall@10", 1, None, "0.2438 seed"),
    _on_u1("dot-mse", 0.940),
    _on_u1("gmf", 0.975),
    _on_u1("neumf", 0.945),
    _on_u1("softmax-dnn", 0.940, "data.merge_titles=false"),
    *(
        Case(
            f"fold_in_{count}_{preset}", "ml-100k", preset,
            ("split.kind=held-out-users", f"split.fold_in={count}"), "ndcg@10", 1, None, "",
        )
        for preset in ("ranking", "neumf-ranking", "softmax-dnn-ranking")
        for count in (5, 10, 20)
    ),
    Case(
        "rmse_1m", "ml-1m", "rating", ("split.kind=random", "split.test=0.1", "split.valid=0"),
        "rmse", 3, 0.845, "0.8140 myFM with times; 0.8227 GLocal-K, epoch chosen on test",
    ),
    Case(
        "ndcg10_1m_core10", "ml-1m", "ranking", (*CORE_10, *LARGER), "ndcg@10", 1, 0.278,
        "0.2904 ADMM-SLIM, 0.2865 EASE (RecBole)",
    ),
    Case(
        "neumf_1m", "ml-1m", "neumf-ranking", (*CORE_10, *START_LARGER, "model.dim=128"), "ndcg@10",
        1, None, "0.2287 (RecBole)",
    ),
    Case(
        "softmax_1m", "ml-1m", "softmax-dnn-ranking",
        (*CORE_10, *START_LARGER, "model.product=true", "train.epochs=6"), "ndcg@10", 1, None, "",
    ),
)  # fmt: skip


def _is_quick(case: Case) -> bool:
    slow = ("neumf", "softmax", "rmse_u1_", "fold_in_5", "fold_in_20")
    network = case.preset in ("neumf-ranking", "softmax-dnn-ranking")
    return case.data == "ml-100k" and not network and not case.figure.startswith(slow)


@dataclass(frozen=True)
class Group:
    """Figures that one experiment measures together.

    Args:
        figures: Their names; more may come beside them.
        measure: The experiment.
    """

    figures: tuple[str, ...]
    measure: Experiment


def _up(release: str, figure: str) -> Group:
    return Group((figure,), partial(served.up_seconds, release=release, figure=figure))


GROUPS = (
    _up("sample", "up_seconds_sample"),
    _up("ml-100k", "up_seconds_100k"),
    Group(("up_1m_ndcg10", "up_seconds_1m"), served.up_1m),
    Group(("temporal_small_ranking", "temporal_small_popularity"), served.temporal_small),
    Group(("served_known_share",), served.served_known),
    Group(
        ("liked_ndcg10_100k", "all_ndcg10_100k", "disliked_hits_100k", "coverage10_100k"),
        taste.stars_in_lists,
    ),
    Group(("disliked_genre_shown",), taste.disliked_genres),
    *(Group((f"fold_in_{known}",), partial(taste.first_ratings, known=known)) for known in KNOWN),
)
QUICK_GROUPS = ("up_seconds_sample", "served_known_share", "liked_ndcg10_100k")


class Quality(Row):
    """What a preset reaches under a protocol, beside popularity, the bar and what was published."""

    figure: str
    data: str
    preset: str
    split: str
    metric: str
    value: float
    sd: float
    runs: int
    seconds: float
    popularity: float
    must: float | None
    against_popularity: str
    published: str


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Args:
        figures: The rows that are measured unless one is asked for.
        repetitions: The most seeds or folds of a row.
    """

    figures: tuple[str, ...]
    repetitions: int


FIGURES = (
    *(case.figure for case in CASES),
    *(figure for group in GROUPS for figure in group.figures),
)
FULL = Sizes(FIGURES, 5)
QUICK = Sizes((*(case.figure for case in CASES if _is_quick(case)), *QUICK_GROUPS), 1)


def run(sizes: Sizes, log: Log, data: str | None = None, only: str | None = None) -> Measurement:
    """Measure every protocol and every experiment.

    Args:
        sizes: How much is measured.
        log: Receives what happens, one line at a time.
        data: Folder of archives named after their releases; None downloads them.
        only: One figure; None for all.

    Raises:
        RecrayError: There is no such figure.
    """
    if only is not None and only not in FIGURES:
        raise unknown_name("row", only, FIGURES)
    wanted = sizes.figures if only is None else (only,)
    figures: Figures = {}
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="recray-quality-") as out:
        lab = Lab(data, out, sizes.repetitions, sizes.figures != FULL.figures, log)
        # First, since `recray up` starts a Ray of its own.
        for group in GROUPS:
            if set(group.figures) & set(wanted):
                found, lines = group.measure(lab)
                figures |= found
                rows += lines
        cases = [case for case in CASES if case.figure in wanted]
        measured = _measure_cases(lab, cases)
    return Measurement(_figures(measured) | figures, [*measured, *rows])


def _measure_cases(lab: Lab, cases: Sequence[Case]) -> "list[Quality]":
    if not cases:
        return []
    with session():
        return [_measure(case, lab) for case in cases]


def _folds(case: Case, settings: Settings, most: int) -> list[Fold]:
    if case.seeds:
        return repetition.repetitions(settings, seeds=min(case.seeds, most))
    names = [f"u{n + 1}" for n in range(case.folds)]
    return repetition.repetitions(settings, names=names[:most])


def _measure(case: Case, lab: Lab) -> Quality:
    """One protocol: validation picks the epoch, a refit takes all rows but the test. The rating
    preset has nothing to pick, and trains on them at once.
    """
    settings = load_settings(case.preset, None, case.settings)
    folds, out = _folds(case, settings, lab.repetitions), f"{lab.out}/{case.figure}"
    refit = settings.split.valid > 0 and settings.split.kind != "held-out-users"
    begin = time.perf_counter()
    source = lab.archive(case.data)
    result = repetition.run(source, folds, out, refit, log=lambda _line: None)
    value, popularity = result.mean[case.metric], result.baselines["popularity"]
    lab.log(f"{case.data} {case.preset}: {case.metric} {value:.4f}")
    return Quality(
        figure=case.figure,
        data=case.data,
        preset=case.preset,
        split=settings.split.kind if case.seeds else "u1..u5"[: 2 if case.folds == 1 else None],
        metric=case.metric,
        value=rounded(value),
        sd=rounded(result.sd[case.metric]),
        runs=len(result.folds),
        seconds=round(time.perf_counter() - begin, 1),
        popularity=round(popularity.get(case.metric, float("nan")), 4),
        must=case.must,
        against_popularity=_against_popularity(f"{out}/{folds[0].name}/bundle"),
        published=case.peer,
    )


def _against_popularity(bundle: str) -> str:
    """The paired difference of the first repetition, in words."""
    beside = Protocol(baselines=("popularity",))
    return evaluate(Bundle.open(bundle), protocol=beside).verdict


def _figures(rows: list[Quality]) -> Figures:
    values = {row.figure: row.value for row in rows}
    figures: Figures = {row.figure: row.value for row in rows if row.must is not None}
    for size, dot in (("1m", "ndcg10_1m_core10"), ("100k", "ndcg10_100k_per_item")):
        for name in ("neumf", "softmax"):
            if f"{name}_{size}" in values and dot in values:
                share = round(values[f"{name}_{size}"] / values[dot], 4)
                figures.setdefault(f"{name}_over_dot", share)
                figures[f"{name}_over_dot_{size}"] = share
    return figures
