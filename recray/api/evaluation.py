"""`recray.evaluate`: a bundle measured on its test split, as a pandas frame."""

import os
from collections.abc import Sequence
from typing import cast

import pandas as pd

from recray.api import arguments
from recray.api.handles import telling
from recray.api.model import Loaded
from recray.api.sources import Path
from recray.errors import RecrayError
from recray.evaluation.protocol import Kind, NextKind, Protocol
from recray.pipelines import stages
from recray.reporting import frames
from recray.serving.registry import resolve_bundle

LOCAL = "local"


def evaluate(
    model: Loaded | Path,
    *,
    k: int | Sequence[int] | None = None,
    baselines: str | Sequence[str] | None = None,
    relevant_from: float | None = None,
    among: str = "all",
    next: str | None = None,
    against: Loaded | Path | Sequence[Loaded | Path] = (),
    workers: int = 1,
    address: str = LOCAL,
) -> pd.DataFrame:
    """Measure a bundle on its test split, the whole catalogue ranked; see `recray evaluate`.

    Args:
        model: What load or export returned, or a folder.
        k: Cut-offs in items; the bundle's own by default.
        baselines: Of popularity, bias-only, item-knn and ease; None takes the usual ones.
        relevant_from: Held-out ratings of so many stars and more count; None: the bundle's own.
        among: `rated` ranks only what the user has rated, which is not honest.
        next: `last`, `successive` or `all`: look for one target at a time, from all that was known
            before it.
        against: Other bundles of the same prepared data set, on the same targets.
        workers: 1 measures in this process without Ray; the digits do not depend on it.
        address: Ray cluster for more.

    Returns:
        By metric: model, low, high (the 95 % bootstrap interval over users), then other bundles
        and the baselines. `attrs["verdict"]` compares with the best baseline in words, and
        `attrs["comparisons"]` has a row for each system, as dictionaries.

    Raises:
        RecrayError: There is nobody to evaluate, or a name or a cut-off is out of range.

    Example:
        >>> table = recray.evaluate(bundle, k=[5, 10], baselines=["popularity"])
        >>> bool(table.loc["recall@10", "model"] > table.loc["recall@10", "popularity"])
        True
    """
    if among not in ("all", "rated"):
        raise RecrayError(f"among={among!r}: give 'all' or 'rated'")
    if next not in (None, "last", "successive", "all"):
        raise RecrayError(f"next={next!r}: give 'last', 'successive' or 'all'")
    wanted = {"relevant_from": relevant_from, "k": k}  # settings judge them
    changes = {n: arguments.plain(n, value) for n, value in wanted.items() if value is not None}
    kind: Kind = "rated" if among == "rated" else "full"
    names = arguments.names_of("baselines", baselines)
    protocol = Protocol(names, kind, next=cast("NextKind | None", next))
    paths = [against] if isinstance(against, Loaded | str | os.PathLike) else against
    others = [_path("against", path) for path in paths]
    workers, path = arguments.whole("workers", workers), _path("model", model)
    with telling(f"measure {path}"):
        report = stages.evaluate(path, changes, None, workers, address, protocol, others)
        return frames.metrics(report)


def _path(name: str, model: Loaded | Path) -> str:
    path = model.path if isinstance(model, Loaded) else None
    return path or resolve_bundle(arguments.path_of(name, model))
