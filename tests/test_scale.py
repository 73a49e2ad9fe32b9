"""The formulas of scale: what is counted is what is spent, and constants are found again."""

from dataclasses import dataclass

import numpy as np
import pytest
from torch import Tensor

from recray import benchmarks
from recray.benchmarks import formulas, processes
from recray.benchmarks.formulas import Size
from recray.benchmarks.synthetic import make_prepared
from recray.config import load_settings
from recray.errors import RecrayError
from recray.training.checkpoint import RunFolder
from recray.training.loop import build_run


def size(**changes) -> Size:
    values = {"ratings": 1_000_000, "users": 6_000, "items": 5_000, "dim": 8} | changes
    return Size(**({"workers": 1, "epochs": 3} | values))


@dataclass(frozen=True)
class Alone(processes.CountingWorkers):
    """Says that it is one of two, counts, and meets nobody."""

    def sum(self, value: Tensor) -> Tensor:
        self.summed.append(value.numel() * value.element_size())
        return value

    def exchange(self, text: str) -> list[str]:
        return [text, ""]

    def begin_exchange(self, parts):
        self.summed.append(parts.numel() * parts.element_size())
        return (lambda: None), parts.clone()

    def begin_gather(self, value):
        self.summed.append(self.size * value.numel() * value.element_size())
        return (lambda: None), value.expand(self.size, *value.shape).clone()

    def barrier(self) -> None:
        pass


@pytest.mark.parametrize("epochs", [1, 4])
def test_the_bytes_that_workers_sum_are_those_of_the_formula(prepared, tmp_path, epochs):
    wanted = (f"train.epochs={epochs}", "model.dim=8", "train.fit_on=train+valid", "evaluate.k=[5]")
    settings = load_settings("ranking", overrides=wanted).sized(12, 10)
    workers = Alone(rank=0, size=2)
    build_run(settings, prepared, RunFolder(str(tmp_path / "run")), workers, lambda _: None).fit()
    expected = size(users=13, items=10, workers=2, epochs=epochs)  # one in valid alone
    assert sum(workers.summed) == formulas.summed_bytes(expected)


def test_one_worker_sends_nothing_and_two_send_half_of_the_equations():
    assert formulas.sent_bytes(size(workers=1)) == formulas.summed_bytes(size(workers=1)) == 0
    more = size(workers=2, epochs=4, users=0), size(workers=2, users=0)
    sent = formulas.sent_bytes(more[0]) - formulas.sent_bytes(more[1])  # of one epoch
    assert sent == pytest.approx(5_000 * (8 * 11 / 2 + 8) * 4 / 2, rel=0.01)


def test_an_epoch_sums_half_of_the_whole_equations_of_items_and_nothing_of_users():
    several = [size(workers=4, dim=64, epochs=e, users=0) for e in (1, 2)]
    one, two = map(formulas.summed_bytes, several)
    assert two - one < 0.52 * 4 * 5_000 * 64 * 66 + 4 * 5_000 * 64


def test_memory_is_that_of_the_worker_and_not_of_who_started_it(prepared, tmp_path):
    settings = load_settings("ranking", overrides=["model.dim=8", "train.epochs=1"]).sized(12, 10)
    large = bytearray(1 << 30)
    large[::4096] = b"x" * len(large[::4096])  # every page is held
    found = processes.train(settings, str(prepared.folder.path), tmp_path, 1)
    assert 0 < found["memory_bytes"] < 500e6 < len(large)


def test_constants_are_found_again():
    terms = [formulas.train_seconds(s) for s in SIZES]
    planted = dict.fromkeys(terms[0], 0.0)
    planted |= {"rating x dim^2": 2e-9, "row": 3e-5, "row x dim^3": 1e-10, "byte sent": 1e-9}
    measured = [formulas.predict(planted, t) for t in terms]
    found = formulas.fit(terms, measured)
    large = formulas.train_seconds(size(ratings=16_000_000, users=100_000, dim=64, workers=2))
    assert formulas.predict(found, large) == pytest.approx(formulas.predict(planted, large))
    assert found == pytest.approx(planted, abs=1e-12)


SIZES = [
    size(dim=32), size(dim=64), size(dim=128), size(users=50_000), size(ratings=4_000_000),
    size(items=60_000), size(workers=2), size(workers=2, ratings=4_000_000, dim=64),
]  # fmt: skip


def test_no_constant_is_negative():
    terms = [{"start": 1.0, "rating": n} for n in (1.0, 2.0, 4.0)]
    assert formulas.fit(terms, [3.0, 2.0, 1.5]) == {
        "start": pytest.approx(1.8621, rel=1e-3),
        "rating": 0,
    }


def test_no_runs_fit_nothing():
    with pytest.raises(ValueError, match="no runs"):
        formulas.fit([], [])


def test_a_bucket_stops_growing_where_there_are_more_of_them():
    def rows(ratings):
        return formulas.prepare_bytes(size(ratings=ratings))["rating of a bucket"]

    assert rows(4_000_000) == rows(8_000_000) == rows(16_000_000) == 500_000
    assert rows(10**9) == 10**9 / 256


def test_a_generated_set_has_each_user_in_one_part(tmp_path):
    made = make_prepared(tmp_path / "made", users=10, items=30, per_user=4, parts=3)
    assert (made.users, made.items, made.buckets) == (10, 30, 3)
    for part in range(3):
        rows = made.load("train", [part])
        assert np.array_equal(np.unique(rows.user), np.arange(part, 10, 3))
    rows = made.load("train")
    pairs = set(zip(rows.user.tolist(), rows.item.tolist(), strict=True))
    assert len(pairs) == len(rows) == made.manifest["splits"]["train"]["rows"] == 40
    assert rows.item.max() < 30


def test_a_row_that_is_not_there_is_refused():
    with pytest.raises(RecrayError, match="formulas, largest, workers"):
        benchmarks.run("scale", True, print, only="memory")
