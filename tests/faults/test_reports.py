"""What a training leaves beside its checkpoints, whatever happens: pictures, the table, TensorBoard's files."""

import importlib.machinery
import json
import os
import signal
import sys
import types

import pytest

import ssd_tf
from ssd_tf import runs
from ssd_tf.api import build, reports
from ssd_tf.data import pipeline
from ssd_tf.errors import Interrupted
from ssd_tf.inference import drawing
from ssd_tf.records import reader
from ssd_tf.training import tensorboard

PICTURES = ("curves.png", "train_batch.jpg", "val_predictions.jpg")
OVERRIDES = [
    *("model.backbone=tiny_ssd", "model.weights=none", "model.image_size=96", "train.batch_size=4"),
    *("train.freeze_batch_norm=false", "train.log_steps=1", "train.checkpoint_steps=2"),
    "train.validation_steps=4",
]


def config(steps):
    return ssd_tf.load_config(None, [*OVERRIDES, f"train.steps={steps}"])


def pretend_tensorboard(patch, installed):
    """Makes the package look installed or missing, whatever this machine has."""
    module = types.ModuleType("tensorboard")
    module.__spec__ = importlib.machinery.ModuleSpec("tensorboard", None)
    patch.setitem(sys.modules, "tensorboard", module if installed else None)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Records of 12 drawn pictures."""
    root = tmp_path_factory.mktemp("shapes")
    ssd_tf.synthesize(root / "shapes", num_images=12, image_size=96, classes=("circle", "star"))
    ssd_tf.convert("coco", source=root / "shapes" / "annotations.json", output=root / "records")
    return root / "records"


class Console:
    """A write_line that sends SIGTERM once a certain line has come, if one is wanted."""

    def __init__(self, stop_after=None):
        self.lines, self.stop_after = [], stop_after

    def __call__(self, text):
        self.lines.append(text)
        if self.stop_after and self.stop_after in text:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module")
def interrupted(records, tmp_path_factory):
    """A run with TensorBoard, stopped after step 3 of 6 and taken up again: its folder and its consoles."""
    folder = tmp_path_factory.mktemp("interrupted") / "run"
    first, second = Console("step 3/6"), Console()
    with pytest.MonkeyPatch.context() as patch:
        pretend_tensorboard(patch, installed=True)
        with pytest.raises(Interrupted):
            ssd_tf.train(config(6), train=records, val=records, run_dir=folder, write_line=first)
        left = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
        ssd_tf.train(config(6), train=records, val=records, run_dir=folder, write_line=second)
    return types.SimpleNamespace(folder=folder, first=first, second=second, left=left)


def test_a_run_taken_up_again_ends_with_all_pictures(interrupted):
    assert not set(PICTURES) & set(interrupted.left)
    for name in PICTURES:
        picture = drawing.cv2.imread(str(interrupted.folder / name))
        assert picture is not None and picture.std() > 10
    assert not list(interrupted.folder.glob(".*tmp*"))


def test_the_first_batch_is_the_one_from_before_the_interruption(interrupted, records):
    run, opened = runs.open_run(interrupted.folder), reader.open_records(records)
    anchors = build.build_anchors(run.config)
    batch = next(pipeline.training_stream(opened, anchors, run.config).take(1).as_numpy_iterator())
    expected = drawing.encode(drawing.draw_batch(batch[0], batch[1], anchors, run.label_map), "x.jpg")
    assert (interrupted.folder / "train_batch.jpg").read_bytes() == expected


def test_the_table_of_the_classes_ends_the_training(interrupted, records):
    (table,) = [line for line in interrupted.second.lines if line.startswith("class  ")]
    assert [line.split()[0] for line in table.splitlines()[2:4]] == ["circle", "star"]
    assert interrupted.second.lines[-1] == table
    assert not [line for line in interrupted.first.lines if line.startswith("class  ")]
    best = ssd_tf.evaluate(interrupted.folder, records)["mAP"]
    assert f"mAP {best:.4f}".split() in [line.split() for line in table.splitlines()]


def events(folder):
    """{tag: [(step, value)]} of all event files in their order; the value of a picture is its (height, width)."""
    found = {}
    for path in sorted((folder / "tensorboard").iterdir()):
        for data in tensorboard.tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            event = tensorboard.tf.compat.v1.Event.FromString(data)
            for value in event.summary.value:
                image = (value.image.height, value.image.width)
                found.setdefault(value.tag, []).append(
                    (event.step, image if value.HasField("image") else value.simple_value)
                )
    return found


def test_tensorboard_has_every_step_once_and_the_numbers_of_the_log(interrupted):
    rows = [json.loads(line) for line in (interrupted.folder / "log.jsonl").read_text().splitlines()]
    found = events(interrupted.folder)
    for tag in ("loss", "class_loss", "box_loss", "learning_rate", "mAP"):
        logged = [(row["step"], pytest.approx(row[tag], rel=1e-6)) for row in rows if row.get(tag) is not None]
        assert found[tag] == logged
    assert [step for step, _ in found["loss"]] == [1, 2, 3, 4, 5, 6]
    height, width = drawing.cv2.imread(str(interrupted.folder / "val_predictions.jpg")).shape[:2]
    assert found["validation"] == [(4, (height, width)), (6, (height, width))]
    assert not [line for line in interrupted.first.lines + interrupted.second.lines if "TensorBoard" in line]


def test_a_finished_run_draws_only_what_is_missing(interrupted, records, monkeypatch):
    pretend_tensorboard(monkeypatch, installed=False)
    seen = []
    draw = drawing.draw_validation
    monkeypatch.setattr(drawing, "draw_validation", lambda *arguments: seen.append(arguments) or draw(*arguments))

    def again():
        console = Console()
        result = ssd_tf.train(
            config(6), train=records, val=records, run_dir=interrupted.folder, write_line=console
        )
        assert (result["step"], result["resumed_from"]) == (6, 6)
        assert any(line.startswith("already finished at step 6; raise train.steps") for line in console.lines)
        return console.lines

    before = {name: (interrupted.folder / name).stat() for name in PICTURES}
    assert not [line for line in again() if line.startswith("class  ")]
    assert {name: (interrupted.folder / name).stat() for name in PICTURES} == before
    assert seen == []

    pixels = (interrupted.folder / PICTURES[2]).read_bytes()
    (interrupted.folder / PICTURES[2]).unlink()
    assert [line for line in again() if line.startswith("class  ")]
    assert (interrupted.folder / PICTURES[2]).read_bytes() == pixels
    assert {name: (interrupted.folder / name).stat() for name in PICTURES[:2]} == {
        name: before[name] for name in PICTURES[:2]
    }
    (arguments,) = seen
    ids = [truth.source_id for truth in reader.read_examples(reader.open_records(records))]
    assert len(arguments[0]) == len(arguments[2]) == 8
    assert [truth.source_id for truth in arguments[1]] == ids
    threshold = ssd_tf.evaluate(interrupted.folder, records)["best_f1"]["threshold"]
    assert arguments[4:] == (0.5 if threshold is None else threshold, 6)


def test_pictures_older_than_the_last_checkpoint_are_drawn_again(interrupted, records, monkeypatch):
    pretend_tensorboard(monkeypatch, installed=False)
    path = interrupted.folder / "curves.png"
    expected = path.read_bytes()
    path.write_bytes(b"of an earlier end")
    checkpoint = (interrupted.folder / "LATEST").stat().st_mtime
    os.utime(path, (checkpoint - 5, checkpoint - 5))
    ssd_tf.train(config(6), train=records, run_dir=interrupted.folder, write_line=Console())
    assert path.read_bytes() == expected


@pytest.mark.parametrize(
    ("best", "threshold"), [(None, 0.5), ({"threshold": None}, 0.5), ({"threshold": 0.37}, 0.37)]
)
def test_predictions_are_drawn_from_the_score_of_the_best_f1_on(best, threshold, records, monkeypatch):
    seen = []
    monkeypatch.setattr(drawing, "draw_validation", lambda *arguments: seen.append(arguments))
    opened = reader.open_records(records)
    validation = types.SimpleNamespace(
        config=config(6), records=opened, result={"best_f1": best}, truths=["truths"], found=["found"]
    )
    reports.Validation.draw(validation, 7)
    ((images, *others),) = seen
    assert images.shape == (8, 96, 96, 3)
    assert others == [["truths"], ["found"], opened.label_map, threshold, 7]


@pytest.fixture(scope="module")
def bare(records, tmp_path_factory):
    """A run without validation and TensorBoard whose curves cannot be drawn."""
    folder, console = tmp_path_factory.mktemp("bare") / "run", Console()

    def refuse(*_):
        raise ValueError("no ink\nleft")

    with pytest.MonkeyPatch.context() as patch:
        pretend_tensorboard(patch, installed=False)
        patch.setattr(drawing, "draw_curves", refuse)
        result = ssd_tf.train(config(2), train=records, run_dir=folder, write_line=console)
    return types.SimpleNamespace(folder=folder, lines=console.lines, result=result)


def test_row_73_tensorboard_missing_is_one_warning_and_the_logs_go_on(bare):
    assert [line for line in bare.lines if "TensorBoard" in line] == [
        "TensorBoard is not installed (pip install tensorboard): logs go to log.csv and log.jsonl alone"
    ]
    assert not (bare.folder / "tensorboard").exists()
    assert len((bare.folder / "log.csv").read_text().splitlines()) == 3
    assert len((bare.folder / "log.jsonl").read_text().splitlines()) == 2


def test_a_picture_that_cannot_be_drawn_loses_nothing(bare):
    assert bare.result["step"] == 2
    assert "curves.png is not drawn: no ink" in bare.lines
    assert runs.find_checkpoint(bare.folder).state["step"] == 2
    assert not (bare.folder / "curves.png").exists()
    assert (bare.folder / "train_batch.jpg").exists()  # the others are drawn all the same


def test_without_validation_there_is_no_picture_of_it(bare):
    assert not (bare.folder / "val_predictions.jpg").exists()
    assert not [line for line in bare.lines if line.startswith("class  ")]


def test_a_stop_while_drawing_is_a_stop(bare, monkeypatch):
    """The faults of drawing are said and passed over; the wish to stop is not."""

    def stop(*_):
        raise Interrupted("stopped", signal.SIGTERM)

    monkeypatch.setattr(drawing, "draw_curves", stop)
    run = runs.open_run(bare.folder)
    with pytest.raises(Interrupted):
        reports.finish(run, 2, None, None, None, Console())
