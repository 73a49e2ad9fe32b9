"""What is served: places of lists that the user has rated already, and what `recray up` leaves."""

import json
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import quote

import numpy as np
from fastapi.testclient import TestClient

from recray.benchmarks.client import free_port
from recray.benchmarks.experiments import Lab, recray_command, rounded
from recray.benchmarks.harness import Figures, Row
from recray.config import Settings, load_settings, preset_names
from recray.data.dataset import Prepared
from recray.data.ids import RawId
from recray.data.source import detect_source
from recray.errors import RecrayError
from recray.inference import batch
from recray.inference.bundle import Bundle
from recray.inference.recommender import Recommender
from recray.pipelines.stages import Stages
from recray.runtime.session import session
from recray.serving.app import build_app
from recray.storage import Folder

K = 10
MOST_USERS = 400
"""Users whose lists are asked for one by one, evenly chosen."""
RELEASES = ("ml-100k", "ml-latest-small", "ml-1m")
FILTERS = {"all ratings": (), "min_rating=4": ("data.min_rating=4",)}
SHORT = ("train.epochs=1",)
"""How well the model is trained does not matter for what its lists leave out."""
Lists = Mapping[RawId, Sequence[RawId]]


class ServedKnown(Row):
    """Lists of one preset by one way: places that the user has rated, and lists that are short."""

    figure: str
    data: str
    rows: str
    preset: str
    way: str
    users: int
    share: float
    short_lists: int


class UpRun(Row):
    """One run of `recray up`, from the command line to the checked service."""

    figure: str
    data: str
    seconds: float
    ndcg10: float | None = None
    popularity: float | None = None
    verdict: str = ""


# ----------------------------------------------------------------------- what has been rated


class Known:
    """What each user has rated, by the name of the film: its id, or its title where a preset makes
    one item of all films of one title.

    Args:
        users: (R,) raw users.
        items: (R,) raw items.
        names: The name of each raw item.
    """

    def __init__(
        self, users: Iterable[RawId], items: Iterable[RawId], names: Mapping[RawId, str]
    ) -> None:
        self.names = names
        self.rated: dict[RawId, set[str]] = {}
        for user, item in zip(users, items, strict=True):
            self.rated.setdefault(user, set()).add(names[item])

    def share(self, lists: Lists) -> float:
        """The share of all places that hold what the user has rated; 0 without any place."""
        places = [
            self.names[item] in self.rated[user] for user, items in lists.items() for item in items
        ]
        return float(np.mean(places)) if places else 0.0

    def short(self, lists: Lists, catalogue: Iterable[RawId]) -> int:
        """How many lists have fewer than K entries although so many unrated items exist.

        Args:
            lists: By raw user.
            catalogue: The raw items that a list can show.
        """
        shown = [self.names[item] for item in catalogue]
        count = 0
        for user, items in lists.items():
            if len(items) < K:
                free = sum(name not in self.rated[user] for name in shown)
                count += len(items) < min(K, free)
        return count


def everything_known(prepared: Prepared, by_title: bool) -> Known:
    """What a data set without any filter holds, in all of its splits."""
    raw = prepared.item_ids.raw.tolist()
    names = prepared.item_table["title"].to_pylist() if by_title else map(str, raw)
    parts = [prepared.load(split) for split in ("train", "valid", "test", "fold_in")]
    users = np.concatenate([prepared.user_ids.raw[part.user] for part in parts])
    items = np.concatenate([prepared.item_ids.raw[part.item] for part in parts])
    return Known(users.tolist(), items.tolist(), dict(zip(raw, names, strict=True)))


# ------------------------------------------------------------------------ lists by each way


def lists_over_http(recommender: Recommender, users: Sequence[RawId]) -> Lists:
    """Ask the HTTP app, which runs in this process."""
    client = TestClient(build_app(recommender))
    lists = {}
    for user in users:
        reply = client.get(f"/v1/users/{quote(str(user), safe='')}/recommendations?k={K}")
        lists[user] = [entry["item"] for entry in reply.raise_for_status().json()["items"]]
    return lists


def lists_in_python(path: str, users: Sequence[RawId]) -> Lists:
    """Ask what `recray.load` returns."""
    import recray

    loaded = recray.load(path)
    return {user: loaded.recommend(user, K)["item"].tolist() for user in users}


def lists_of_batch(bundle: Bundle, out: str) -> Lists:
    """Read what `recray recommend --all` writes, for every user."""
    batch.recommend_all(bundle, out, K, log=lambda _line: None)
    folder, lists = Folder(out), dict[RawId, list[RawId]]()
    for name in folder.files():
        if name.endswith(".parquet"):
            table = folder.read_table(name)
            pairs = zip(table["user"].to_pylist(), table["item"].to_pylist(), strict=True)
            for user, item in pairs:
                lists.setdefault(user, []).append(item)
    return lists


def served_known(lab: Lab) -> tuple[Figures, Sequence[Row]]:
    """Every preset, by every way, on every data set, with and without low ratings."""
    releases = RELEASES[:1] if lab.quick else RELEASES
    every = [name for name in preset_names() if not load_settings(name).train.choose_from]
    presets = ["ranking"] if lab.quick else every
    rows: list[ServedKnown] = []
    with session():
        for release in releases:
            rows += _served_of(lab, release, presets)
    return {
        "served_known_share": max(row.share for row in rows),
        "served_short_lists": sum(row.short_lists for row in rows),
    }, rows


def _served_of(lab: Lab, release: str, presets: Sequence[str]) -> list[ServedKnown]:
    rows: list[ServedKnown] = []
    known = {by_title: _known_of(lab, release, by_title) for by_title in (False, True)}
    for words, settings in FILTERS.items():
        for preset in presets:
            out = f"{lab.out}/served-{release}-{words.partition('=')[0]}-{preset}"
            bundle = _trained(lab, release, preset, settings, out)
            if bundle is not None:
                names = known[bundle.settings.data.merge_titles]
                rows += _rows(bundle, names, release, words, out)
                lab.log(f"{release} {preset}, {words}: {max(r.share for r in rows[-3:]):.4f}")
    return rows


def _known_of(lab: Lab, release: str, by_title: bool) -> Known:
    settings = load_settings("ranking", None, ("split.valid=0", "split.test=0"))
    stages = Stages(Folder(f"{lab.out}/known-{release}"), settings, 1, "local", lab.log)
    prepared = stages.prepare(detect_source(lab.archive(release), settings, None))
    return everything_known(prepared, by_title)


def _short(settings: Settings) -> Settings:
    """The recipe with as few epochs as it allows."""
    burn_in = settings.objective.burn_in if settings.objective.kind == "bpmf" else 0
    return settings.changed(train={"epochs": burn_in + 1, "patience": None})


def _trained(
    lab: Lab, release: str, preset: str, settings: Sequence[str], out: str
) -> Bundle | None:
    """Train a preset as `recray up` does, in few epochs; None where it does not fit the data."""
    resolved = _short(load_settings(preset, None, settings))
    stages = Stages(Folder(out), resolved, 1, "local", lambda _line: None)
    try:
        prepared = stages.prepare(detect_source(lab.archive(release), resolved, None))
        return stages.export(stages.train(prepared), prepared)
    except RecrayError as error:
        lab.log(f"{release} {preset}: left out, {error}")
        return None


def _rows(bundle: Bundle, known: Known, data: str, words: str, out: str) -> list[ServedKnown]:
    recommender = Recommender(bundle)
    everybody: list[RawId] = bundle.user_ids.raw.tolist()
    users = everybody[:: max(1, -(-len(everybody) // MOST_USERS))]
    ways = {
        "http": lists_over_http(recommender, users),
        "python": lists_in_python(bundle.folder.path, users),
        "batch": lists_of_batch(bundle, f"{out}/lists"),
    }
    catalogue = bundle.item_ids.raw[: bundle.item_ids.known].tolist()
    return [
        ServedKnown(
            figure="served_known_share",
            data=data,
            rows=words,
            preset=bundle.settings.preset,
            way=way,
            users=len(lists),
            share=rounded(known.share(lists)),
            short_lists=known.short(lists, catalogue),
        )
        for way, lists in ways.items()
    ]


# ------------------------------------------------------------------------------- recray up


def up(lab: Lab, figure: str, release: str, *settings: str) -> UpRun:
    """Run `recray up RELEASE --once` in a process of its own, and read what it measured.

    Raises:
        RecrayError: It failed.
    """
    source = release if release == "sample" else lab.archive(release)
    given = [word for setting in settings for word in ("--set", setting)]
    given += ["--out", f"{lab.out}/{figure}", "--port", str(free_port())]
    command = recray_command("up", source, "--once", "--json", *given)
    begin = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - begin
    if done.returncode:
        raise RecrayError(f"recray up {release}: {done.stderr.strip().splitlines()[-1:]}")
    report = json.loads(done.stdout)["evaluation"]
    return UpRun(
        figure=figure,
        data=release,
        seconds=round(seconds, 1),
        ndcg10=rounded(report["metrics"]["ndcg@10"]["value"]),
        popularity=rounded(report["baselines"]["popularity"]["ndcg@10"]["value"]),
        verdict=report["verdict"],
    )


def up_seconds(lab: Lab, release: str, figure: str) -> tuple[Figures, Sequence[Row]]:
    """Time `recray up`, from the command line to the checked service."""
    row = up(lab, figure, release)
    return {figure: row.seconds}, [row]


def up_1m(lab: Lab) -> tuple[Figures, Sequence[Row]]:
    """`recray up ml-1m`, all defaults: its seconds, and what it reaches."""
    row = up(lab, "up_1m_ndcg10", "ml-1m")
    return {"up_1m_ndcg10": row.ndcg10, "up_seconds_1m": row.seconds}, [row]


def temporal_small(lab: Lab) -> tuple[Figures, Sequence[Row]]:
    """`recray up ml-latest-small` cut at one time: all 116 test users, most of them new."""
    cut = "split.kind=temporal", "split.test=0.2"
    row = up(lab, "temporal_small_ranking", "ml-latest-small", *cut)
    return {
        "temporal_small_ranking": row.ndcg10,
        "temporal_small_popularity": row.popularity,
    }, [row]
