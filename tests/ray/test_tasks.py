"""Stages of tasks on Ray Data: results, errors, progress and what is counted."""

from pathlib import Path

import pytest

from recray.config import load_settings
from recray.data import ingest, source
from recray.data.formats import text
from recray.errors import RecrayError
from recray.runtime import task_watch
from recray.runtime.tasks import TaskRunner, Work, map_tasks

pytestmark = pytest.mark.usefixtures("ray_session")


def refuse_odd(number: int, *, limit: int) -> int:
    if number % 2 and number > limit:
        raise RecrayError(f"{number} is odd")
    return number * number


def test_results_come_in_the_order_of_the_calls():
    assert map_tasks(refuse_odd, 6, limit=6) == [0, 1, 4, 9, 16, 25]


def test_the_first_call_that_fails_by_its_number_is_what_the_user_reads():
    told = []
    with pytest.raises(RecrayError) as failure:
        TaskRunner(told.append).map("square", refuse_odd, 8, limit=2)
    assert str(failure.value) == "3 is odd"
    assert told[-1].done == 5, "a task that failed is not done"


def test_progress_counts_tasks_and_their_rows_as_they_end():
    told = []
    runner = TaskRunner(told.append)
    runner.map("square", refuse_odd, 5, lambda square: Work(square, 1), limit=5)
    assert [one.stage for one in told] == ["square"] * len(told)
    assert [one.done for one in told] == sorted({one.done for one in told})
    assert told[-1][:4] == ("square", 5, 5, 0 + 1 + 4 + 9 + 16)
    (stage,) = runner.stages
    assert (stage.stage, stage.tasks, stage.failed) == ("square", 5, 0)
    assert (stage.rows, stage.bytes) == (30, 5)
    assert stage.max_memory_bytes > 10_000_000
    assert 0 < stage.wall_s < 600
    assert 0 < stage.cpu_s < 600


@pytest.fixture
def ratings(tmp_path, monkeypatch) -> Path:
    """A file of 3,000 ratings in several ranges."""
    path = tmp_path / "ratings.csv"
    rows = [f"{n % 60},{n % 50},{1 + n % 5},{1_400_000_000 + n}\n" for n in range(3_000)]
    path.write_text("user,item,rating,time\n" + "".join(rows))
    monkeypatch.setattr(text, "RANGE_BYTES", 20_000)
    return path


def test_a_source_is_read_by_a_task_a_range_and_partitions_go_into_a_sink(
    ratings, tmp_path, monkeypatch
):
    monkeypatch.setattr(task_watch, "LOOK_S", 0.0)
    told = []
    runner = TaskRunner(told.append)
    given = source.detect_source(str(ratings))
    assert len(given.ranges) > 2
    made = ingest.prepare(given, str(tmp_path / "p"), load_settings(), runner=runner)
    facts = {stage.stage: stage for stage in runner.stages}
    assert list(facts) == ["scan", "gather", "split", "encode"]
    assert "RatingsSource" in facts["scan"].operators
    assert "Write" in facts["encode"].operators
    tasks = [facts[stage].tasks for stage in ("scan", "gather", "encode")]
    assert tasks == [len(given.ranges), made.buckets, made.buckets]
    assert [facts[stage].rows for stage in ("scan", "gather", "encode")] == [3_000, 300, 300]
    parts = [f["bytes"] for f in made.manifest["files"] if "/" in f["name"]]
    assert facts["encode"].bytes == sum(parts)
    ends = [one for one in told if one.done == one.tasks]
    on_the_way = [one for one in told if one.stage == "encode" and 0 < one.done < one.tasks]
    assert on_the_way
    assert all(0 < one.rows < 300 for one in on_the_way)
    assert [(one.stage, one.rows) for one in ends] == [
        ("scan", 3_000),
        ("gather", 300),
        ("split", 300),
        ("encode", 300),
    ]


def test_where_nobody_tells_of_tasks_that_write_their_end_is_told(ratings, tmp_path, monkeypatch):
    monkeypatch.setattr(task_watch, "find", lambda _name, _instead: None)
    told = []
    given = source.detect_source(str(ratings))
    ingest.prepare(given, str(tmp_path / "p"), load_settings(), runner=TaskRunner(told.append))
    assert [one[1:4] for one in told if one.stage == "encode"] == [(8, 8, 300)]


def test_the_error_of_a_range_is_the_users_one_line(ratings, tmp_path):
    given = source.detect_source(str(ratings))
    ratings.unlink()
    with pytest.raises(RecrayError) as failure:
        ingest.prepare(given, str(tmp_path / "p"), load_settings())
    assert "\n" not in str(failure.value)
    assert not (tmp_path / "p").exists()


def test_the_error_of_a_partition_is_the_users_one_line(ratings, tmp_path, monkeypatch):
    def no_room(number, **_known):
        raise RecrayError(f"no room for partition {number}")

    monkeypatch.setattr(ingest, "encode", no_room)
    given = source.detect_source(str(ratings))
    with pytest.raises(RecrayError) as failure:
        ingest.prepare(given, str(tmp_path / "p"), load_settings())
    assert str(failure.value) == "no room for partition 0"
    assert not (tmp_path / "p").exists()


def test_the_callers_own_data_sets_keep_their_bars(ratings, tmp_path):
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = True
    map_tasks(refuse_odd, 2, limit=2)
    assert context.enable_progress_bars
    assert not context.custom_execution_callback_classes
