"""What people and the logbooks of other tools are told while a run trains."""

import json
import sys

import pytest

from recray.config import load_settings
from recray.errors import RecrayError
from recray.progress import Console
from recray.reporting.mlflow import MLflowLogger, mlflow_logger
from recray.storage import Folder
from recray.training.callbacks import Callbacks, HistoryTail, TensorBoard, watch_history
from recray.training.checkpoint import RunFolder
from recray.training.run_metadata import RunMetadata

METADATA = RunMetadata(
    dataset="tiny", prepared="p", fingerprint="f", workers=2, settings=load_settings("dot-mse")
)


def entries(count: int) -> list[dict]:
    return [
        {"epoch": n, "loss": 1 / n, "rmse": 2 / n, "seconds": 3.0, "samples_per_s": 1_234_567}
        for n in range(1, count + 1)
    ]


def write(run: RunFolder, count: int) -> None:
    run.folder.replace_bytes("epochs.json", json.dumps(entries(count)).encode())


class Diary:
    """A logbook that remembers, and breaks when it is told to."""

    name = "diary"

    def __init__(self, breaks: int = 0) -> None:
        self.breaks, self.told, self.ended = breaks, [], None

    def epoch(self, entry):
        if entry["epoch"] == self.breaks:
            raise OSError("the pencil broke\nand more")
        self.told.append(entry["epoch"])

    def close(self, finished):
        self.ended = finished


def test_each_new_epoch_is_told_once_to_everybody(tmp_path):
    folder, diary, told = RunFolder(str(tmp_path)), Diary(), []
    watch = Callbacks(on_epoch=lambda e: told.append(e["epoch"]), loggers=(lambda *_: diary,))
    write(folder, 2)
    with watch_history(folder, watch, METADATA, entries(2)):
        write(folder, 3)
        write(folder, 5)
    assert told == diary.told == [3, 4, 5]
    assert diary.ended is True


def test_a_logbook_that_breaks_is_left_out_and_the_run_goes_on(tmp_path):
    folder, diary, said = RunFolder(str(tmp_path)), Diary(breaks=2), []
    with watch_history(folder, Callbacks(said.append, None, (lambda *_: diary,)), METADATA, []):
        write(folder, 4)
    assert (diary.told, diary.ended) == ([1], None)
    assert said == ["diary is left out from here on: the pencil broke"]


def test_a_history_that_cannot_be_read_is_said_once_and_looked_at_again(tmp_path):
    folder, told, said = RunFolder(str(tmp_path)), [], []
    tail = HistoryTail(folder, Callbacks(said.append, told.append), [], 0)
    assert not tail.emit(), "there is no history yet"
    folder.folder.replace_bytes("epochs.json", b'[{"epoch": 1')
    assert not tail.emit()
    assert not tail.emit()
    assert len(said) == 1
    assert "epochs.json is damaged" in said[0]
    write(folder, 2)
    assert tail.emit()
    assert [entry["epoch"] for entry in told] == [1, 2]


def test_a_run_that_is_stopped_closes_its_logbooks_as_unfinished(tmp_path):
    diary = Diary()
    with (
        pytest.raises(KeyboardInterrupt),
        watch_history(
            RunFolder(str(tmp_path)), Callbacks(loggers=(lambda *_: diary,)), METADATA, []
        ),
    ):
        raise KeyboardInterrupt
    assert diary.ended is False


def test_a_line_an_epoch_says_how_good_how_fast_and_how_long(capsys):
    console = Console(as_json=False)
    console.expect(20, "rmse")
    for entry in entries(2):
        console.epoch(entry)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith(
        "epoch  2/20  loss 0.5000  rmse 1.0000  1.23M samples/s  3.00 s  0:54 left"
    )


def scalars(folder) -> dict[str, list[tuple[int, float]]]:
    """Steps and values by tag, of all event files of a folder."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(folder.iterdir()):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.tensor.float_val:
                    found.setdefault(value.tag, []).append((event.step, value.tensor.float_val[0]))
    return found


def test_tensorboard_has_every_epoch_once_when_a_run_was_continued(tmp_path):
    folder = Folder(str(tmp_path))
    for done, first in ((0, 3), (2, 4)):  # the third epoch was told, but its checkpoint lost
        book = TensorBoard(folder, METADATA, entries(done))
        for entry in entries(first)[done:]:
            book.epoch(entry)
        book.close(finished=True)
    found = scalars(tmp_path / "tensorboard")
    for name, size in (("train/loss", 1), ("valid/rmse", 2), ("speed/seconds", None)):
        steps, values = zip(*found[name], strict=True)
        assert steps == (1, 2, 3, 4)
        assert values == pytest.approx([size / n if size else 3.0 for n in steps])


def test_without_mlflow_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow.tracking", None)
    with pytest.raises(RecrayError, match=r"pip install 'recray\[mlflow\]'"):
        mlflow_logger("http://127.0.0.1:5000")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_mlflow_has_settings_and_every_epoch_of_a_continued_run(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.tracking import MlflowClient

    uri, folder = f"file://{tmp_path}/store", Folder(str(tmp_path / "run"))
    for done, last in ((0, 2), (2, 4)):
        book = MLflowLogger(uri, folder, METADATA, entries(done))
        for entry in entries(last)[done:]:
            book.epoch(entry)
        book.close(finished=last == 4)
    client = MlflowClient(uri)
    (made,) = client.search_runs([client.get_experiment_by_name("recray").experiment_id])
    assert made.info.status == "FINISHED"
    assert made.data.params["train.batch_size"] == "512"
    assert made.data.params["workers"] == "2"
    history = client.get_metric_history(made.info.run_id, "valid/rmse")
    assert [(m.step, m.value) for m in history] == [(n, 2 / n) for n in (1, 2, 3, 4)]


@pytest.mark.slow
def test_an_mlflow_server_that_does_not_answer_is_told_at_once(tmp_path):
    with pytest.raises(RecrayError, match=r"--mlflow http://127.0.0.1:1: nothing answers there"):
        MLflowLogger("http://127.0.0.1:1", Folder(str(tmp_path)), METADATA, [])
