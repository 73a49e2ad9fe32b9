"""`recray.evaluate`: a bundle measured on its test split, as a pandas frame."""

import os
from collections.abc import Mapping, Sequence
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
        baselines: Names as `recray evaluate --help` lists them; None takes the usual ones.
        relevant_from: Held-out ratings of so many stars and more count; None: the bundle's own.
        among: `rated` ranks only what the user has rated, which is not honest.
        next: `last`, `successive` or `all`: one target at a time, from all that was known before.
        against: Other bundles of the same prepared data set, on the same targets.
        workers: 1 measures in this process without Ray; the digits do not depend on it.
        address: Ray cluster for more.

    Returns:
        By metric: model, low, high (the 95 % bootstrap interval over users), other bundles and
        baselines. `attrs` has the verdict in words, and the comparisons as dictionaries.

    Raises:
        RecrayError: There is nobody to evaluate, or a name or a cut-off is out of range.

    Example:
        >>> table = recray.evaluate(bundle, k=[5, 10], baselines=["popularity"])
        >>> bool(table.loc["recall@10", "model"] > table.loc["recall@10", "popularity"])
        True
    """
    protocol = _protocol(among, next, baselines)
    wanted = {"relevant_from": relevant_from, "k": k}  # settings judge them
    return _measure(model, wanted, protocol, against, workers, address)


def _protocol(among: str, kind: str | None, baselines: str | Sequence[str] | None) -> Protocol:
    if among not in ("all", "rated"):
        raise RecrayError(f"among={among!r}: give 'all' or 'rated'")
    if kind not in (None, "last", "successive", "all"):
        raise RecrayError(f"next={kind!r}: give 'last', 'successive' or 'all'")
    names = arguments.names_of("baselines", baselines)
    ranked: Kind = "rated" if among == "rated" else "full"
    return Protocol(names, ranked, next=cast("NextKind | None", kind))


def _measure(
    model: Loaded | Path,
    wanted: Mapping[str, object],
    protocol: Protocol,
    against: Loaded | Path | Sequence[Loaded | Path],
    workers: int,
    address: str,
) -> pd.DataFrame:
    changes = {n: arguments.plain(n, value) for n, value in wanted.items() if value is not None}
    paths = [against] if isinstance(against, Loaded | str | os.PathLike) else against
    others = [_path("against", path) for path in paths]
    workers, path = arguments.whole("workers", workers), _path("model", model)
    with telling(f"measure {path}"):
        report = stages.evaluate(path, changes, None, workers, address, protocol, others)
        return frames.metrics(report)


def _path(name: str, model: Loaded | Path) -> str:
    path = model.path if isinstance(model, Loaded) else None
    return path or resolve_bundle(arguments.path_of(name, model))
