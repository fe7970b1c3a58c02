"""Whole trainings of a small network: they learn, and no interruption changes what they learn."""

import csv
import dataclasses
import itertools
import json
import os
import signal
import time

import numpy as np
import pytest

from ssd_tf import config as configs
from ssd_tf import fileio, runs
from ssd_tf.api import build, clock, predict
from ssd_tf.api import train as trains
from ssd_tf.boxes import ops
from ssd_tf.data import pipeline
from ssd_tf.errors import ConfigError, DataError, EnvironmentFault, Interrupted, TrainingError
from ssd_tf.fileio import directory_lock
from ssd_tf.records import reader
from ssd_tf.structures import LabelMap
from ssd_tf.training import callbacks, checkpoint, team, trainer
from ssd_tf.training.losses import make_losses

RECIPE = """
[model]
backbone = "small"
image_size = 64
weights = "none"

[augment]
brightness = 8.0
expand_probability = 0.0
crop_probability = 0.0
flip_probability = 0.0

[train]
batch_size = 4
steps = 8
learning_rate = 0.02
warmup = 0.1
freeze_batch_norm = false
batch_norm_momentum = 0.9
checkpoint_steps = 4
log_steps = 2
"""


@pytest.fixture
def recipe(tmp_path, small_backbone):
    """Path of the TOML file of a training of 8 steps."""
    path = tmp_path / "small.toml"
    path.write_text(RECIPE)
    return path


def run_training(recipe, records, run_dir, *overrides, write_line=lambda _: None):
    config = configs.load_config(str(recipe), overrides)
    return trains.train(config, str(records), run_dir, write_line=write_line)


def final_weights(run_dir):
    return predict.load(run_dir).model.get_weights()


def shown_weights(run_dir, file):
    """Those of one file of the last checkpoint."""
    model = build.build(runs.open_run(run_dir).config).model
    checkpoint.load_weights(dataclasses.replace(runs.find_checkpoint(run_dir), weights=file), model)
    return model.get_weights()


def assert_same_weights(first, second):
    """Bit by bit: the same operations in the same order."""
    for a, b in zip(final_weights(first), final_weights(second), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize(
    ("options", "factor"),
    [
        ((), 15),
        # Focal loss starts low: from the prior.
        (("loss.classification=focal", "loss.box=giou", "model.heads=shared", "model.neck=fpn"), 5),
        (("loss.classification=sigmoid", "loss.box=ciou", "model.heads=lite", "postprocess.nms=soft_linear"), 15),
    ],
    ids=["plain", "focal", "sigmoid"],
)
def test_overfits_four_images(options, factor, recipe, drawn_records, drawn_images, drawn_objects, tmp_path):
    overrides = ("train.steps=250", "train.checkpoint_steps=1000", "train.log_steps=5", *options)
    result = run_training(recipe, drawn_records, tmp_path / "run", *overrides)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert result["loss"] == losses[-1]
    assert losses[-1] < losses[0] / factor
    predictor = predict.load(tmp_path / "run")
    for image, objects in zip(drawn_images, drawn_objects, strict=True):
        found = predictor(image, 0.5)
        assert len(found) == len(objects)
        for name, box in objects:
            same = found.classes == predictor.label_map.id(name)
            overlaps = ops.iou(np.float32([box]), ops.yxyx_to_xyxy(found.boxes[same]))
            assert overlaps.max() > 0.7


class Cut(Exception):
    """Ends a training from inside, as a crash would."""


def cut_at(step):
    def write_line(text):
        if f"step {step}/" in text:
            raise Cut

    return write_line


def test_interrupted_training_equals_an_uninterrupted_one(recipe, drawn_records, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_training(recipe, drawn_records, whole)
    with pytest.raises(Cut):
        run_training(recipe, drawn_records, cut, write_line=cut_at(6))
    assert (cut / "LATEST").read_text() == "step-00000004\n"
    result = run_training(recipe, drawn_records, cut)
    assert (result["resumed_from"], result["step"]) == (4, 8)
    assert_same_weights(whole, cut)
    logs = [[json.loads(row) for row in (path / "log.jsonl").read_text().splitlines()] for path in (whole, cut)]
    for first, second in zip(*logs, strict=True):
        assert {key: first[key] for key in ("step", "loss", "learning_rate")} == {
            key: second[key] for key in ("step", "loss", "learning_rate")
        }
    assert [row["step"] for row in logs[0]] == [2, 4, 6, 8]
    with open(cut / "log.csv", newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [2, 4, 6, 8]


EVERYTHING = (
    "train.ema=0.9",
    "train.accumulate=2",
    "train.optimizer=adamw",
    "train.learning_rate=0.002",
    "train.backbone_rate=0.1",
    "train.freeze_to=relu0",
    "augment.mosaic_probability=0.5",
    "augment.mixup_probability=0.5",
    "augment.vertical_flip_probability=0.5",
    "augment.rotate_probability=0.5",
    "data.balance=repeat",
    "data.repeat_threshold=0.9",
    "train.checkpoint_steps=3",  # in the middle of an update of two steps
)


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_no_interruption_changes_what_all_options_together_learn(precision, recipe, drawn_records, tmp_path):
    """Optimizer, average, half-accumulated gradients and the scale of the loss included."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    options = (*EVERYTHING, f"train.precision={precision}")
    run_training(recipe, drawn_records, whole, *options)
    with pytest.raises(Cut):
        run_training(recipe, drawn_records, cut, *options, write_line=cut_at(4))
    assert (cut / "LATEST").read_text() == "step-00000003\n"
    run_training(recipe, drawn_records, cut, *options)
    assert_same_weights(whole, cut)
    for first, second in zip(*(shown_weights(path, runs.WEIGHTS) for path in (whole, cut)), strict=True):
        assert np.array_equal(first, second)
    files = [path / "step-00000008" / checkpoint.OPTIMIZER for path in (whole, cut)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_run_shows_the_averaged_weights(recipe, drawn_records, tmp_path):
    run_training(recipe, drawn_records, tmp_path / "run", "train.ema=0.9")
    average, shown = shown_weights(tmp_path / "run", runs.AVERAGE), final_weights(tmp_path / "run")
    assert all(np.array_equal(first, second) for first, second in zip(average, shown, strict=True))
    raw = shown_weights(tmp_path / "run", runs.WEIGHTS)
    same = [np.array_equal(first, second) for first, second in zip(raw, shown, strict=True)]
    model = predict.load(tmp_path / "run").model
    trained = {id(weight) for weight in model.trainable_weights}
    assert sum(same) < len(same) / 2  # the batch norms' statistics, which have no average, are not alone
    assert all(equal for equal, weight in zip(same, model.weights, strict=True) if id(weight) not in trained)


def test_another_seed_gives_other_weights(recipe, drawn_records, tmp_path):
    run_training(recipe, drawn_records, tmp_path / "a", "train.steps=2")
    run_training(recipe, drawn_records, tmp_path / "b", "train.steps=2", "train.seed=1")
    run_training(recipe, drawn_records, tmp_path / "c", "train.steps=2")
    assert_same_weights(tmp_path / "a", tmp_path / "c")
    assert not np.array_equal(final_weights(tmp_path / "a")[0], final_weights(tmp_path / "b")[0])


def test_a_signal_saves_the_step(recipe, drawn_records, tmp_path):
    def write_line(text):
        if "step 2/" in text:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="saved step 2; run the same command to continue") as caught:
        run_training(recipe, drawn_records, tmp_path / "cut", write_line=write_line)
    assert caught.value.exit_code == 143
    assert run_training(recipe, drawn_records, tmp_path / "cut")["resumed_from"] == 2
    run_training(recipe, drawn_records, tmp_path / "whole")
    assert_same_weights(tmp_path / "cut", tmp_path / "whole")


def test_damaged_checkpoint_is_named_and_passed_over(recipe, drawn_records, tmp_path):
    run_training(recipe, drawn_records, tmp_path / "run")
    weights = tmp_path / "run" / "step-00000008" / runs.WEIGHTS
    before = final_weights(tmp_path / "run")
    weights.write_bytes(weights.read_bytes()[:-100])
    lines = []
    result = run_training(recipe, drawn_records, tmp_path / "run", write_line=lines.append)
    assert result["resumed_from"] == 4
    assert "checkpoint step-00000008 incomplete, using step-00000004" in lines
    for first, second in zip(before, final_weights(tmp_path / "run"), strict=True):
        assert np.array_equal(first, second)


def test_a_finished_run_says_so(recipe, drawn_records, tmp_path):
    run_training(recipe, drawn_records, tmp_path / "run")
    stamp = (tmp_path / "run" / "step-00000008" / runs.WEIGHTS).stat().st_mtime_ns
    lines = []
    result = run_training(recipe, drawn_records, tmp_path / "run", write_line=lines.append)
    assert result["step"] == result["resumed_from"] == 8
    assert lines[-1] == "already finished at step 8; raise train.steps to go on"
    assert (tmp_path / "run" / "step-00000008" / runs.WEIGHTS).stat().st_mtime_ns == stamp
    assert run_training(recipe, drawn_records, tmp_path / "run", "train.steps=9")["step"] == 9


def test_loss_that_is_not_finite_stops_the_training(recipe, drawn_records, tmp_path):
    overrides = ("train.learning_rate=100", "train.clip_norm=0", "train.warmup=0", "train.steps=200")
    with pytest.raises(TrainingError, match=r"step \d+: the loss is (nan|inf).*train\.learning_rate"):
        run_training(recipe, drawn_records, tmp_path / "loss", *overrides, "train.checkpoint_steps=1000")
    assert runs.find_checkpoint(tmp_path / "loss") is None
    with pytest.raises(TrainingError, match=r"step \d+: .* is not finite, .*train\.learning_rate") as caught:
        run_training(recipe, drawn_records, tmp_path / "run", *overrides, "train.checkpoint_steps=1")
    assert caught.value.exit_code == 4
    step = int(str(caught.value).split(":")[0].removeprefix("step "))
    found = runs.find_checkpoint(tmp_path / "run")
    assert (found.state["step"] if found else 0) == step - 1


def test_wrong_conditions_are_told_before_any_work(recipe, drawn_records, tmp_path):
    run_training(recipe, drawn_records, tmp_path / "run", "train.steps=2")
    with pytest.raises(ConfigError, match=r"cannot resume: train\.momentum 0\.9 → 0\.5"):
        run_training(recipe, drawn_records, tmp_path / "run", "train.momentum=0.5")
    with pytest.raises(ConfigError, match=r"model\.num_classes is 5, the records have 2 classes"):
        run_training(recipe, drawn_records, tmp_path / "other", "model.num_classes=5")
    with pytest.raises(DataError, match="no such records directory"):
        run_training(recipe, tmp_path / "absent", tmp_path / "other")
    assert not (tmp_path / "other").exists()
    with directory_lock(tmp_path / "run"), pytest.raises(EnvironmentFault, match="is in use by pid"):
        run_training(recipe, drawn_records, tmp_path / "run", "train.steps=3")


def prepare(recipe, drawn_records, run_dir, *overrides):
    """(run, function (validate, hooks=...) that trains it from its last checkpoint on)."""
    config = configs.load_config(str(recipe), overrides)
    records = reader.open_records(str(drawn_records))
    config = clock.resolve(config, records, None, run_dir, team.ALONE, False, print)
    run = runs.start_run(run_dir, config, records.label_map, records.num_examples)

    def go_on(validate=None, write_line=lambda _: None, hooks=()):
        detector = build.build(config)
        losses = make_losses(config.loss, detector.anchors)
        trainer.compile_detector(detector.model, losses, config.train)
        return trainer.train(
            detector.model,
            lambda start: pipeline.training_stream(records, detector.anchors, config, start),
            run,
            validate,
            write_line,
            hooks,
            runs.find_checkpoint(run.path),
        )

    return run, go_on


METRICS = (None, 0.5, 0.5, 0.25)


def validation_rows(run):
    rows = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    return [(row["step"], row["mAP"]) for row in rows if "mAP" in row]


class Hook:
    """Notes what it is told."""

    def __init__(self):
        self.told = []

    def __call__(self, step, logs):
        self.told.append((step, sorted(logs)))

    def validated(self, step, result):
        self.told.append((step, result["mAP"]))

    def finish(self):
        self.told.append("finish")


def test_validation_decides_what_is_best(recipe, drawn_records, tmp_path):
    """Validated every second step; n/a is no number, equal is not better."""
    run, go_on = prepare(recipe, drawn_records, tmp_path / "run", "train.validation_steps=2", "train.keep_last=1")
    metrics, lines = iter(METRICS), []
    hook, silent = Hook(), []
    hooks = (hook, lambda step, logs: silent.append(step))
    result = go_on(lambda: {"mAP": next(metrics), "metric": "voc07"}, lines.append, hooks)
    assert result["best_metric"] == 0.5
    assert runs.find_checkpoint(run.path, "best").state["step"] == 4
    assert runs.find_checkpoint(run.path).state == {
        **runs.find_checkpoint(run.path).state,
        "step": 8,
        "examples": 32,
    }
    assert validation_rows(run) == [(2, None), (4, 0.5), (6, 0.5), (8, 0.25)]
    names = ["box_deltas_loss", "class_logits_loss", "loss"]
    steps = [[(step, names), (step + 1, names), (step + 1, value)] for step, value in zip((1, 3, 5, 7), METRICS)]
    assert hook.told == [*itertools.chain(*steps), "finish"]
    assert silent == list(range(1, 9))
    assert runs.find_checkpoint(run.path).state["best"]["value"] == 0.5
    assert any(line.startswith("step 2: validation mAP n/a (voc07, ") for line in lines)


def test_early_stopping_waits_for_a_better_validation(recipe, drawn_records, tmp_path):
    """Patience 2 after the best one; started again, it stays ended."""
    run, go_on = prepare(
        recipe, drawn_records, tmp_path / "run", "train.validation_steps=1", "train.early_stopping=2"
    )
    metrics, lines, hook = iter([0.1, 0.3, 0.2, 0.4, 0.4, 0.3, 0.9]), [], Hook()
    result = go_on(lambda: {"mAP": next(metrics), "metric": "voc07"}, lines.append, (hook,))
    assert (result["step"], result["best_metric"], hook.told[-1]) == (6, 0.4, "finish")
    told = "stopped early: 2 validations without a better one than 0.4000 of step-00000004 (train.early_stopping)"
    assert lines[-1] == told
    assert runs.find_checkpoint(run.path).state["step"] == 6
    again = go_on(lambda: pytest.fail("validated"), lines.append)
    assert (again["step"], lines[-1]) == (6, told)


def test_early_stopping_needs_validation(recipe, drawn_records, tmp_path):
    with pytest.raises(ConfigError, match=r"^train\.early_stopping needs validation: give --val$"):
        run_training(recipe, drawn_records, tmp_path / "run", "train.early_stopping=1")
    assert not (tmp_path / "run").exists()


def test_hours_become_steps_once(recipe, drawn_records, tmp_path, monkeypatch):
    """Of .25 s each, in a 120th of an hour: 120; the run keeps them however fast it is when it goes on."""
    seconds = iter([0.25])
    monkeypatch.setattr(trainer, "time_steps", lambda model, stream: next(seconds))
    hours = "train.hours=0.008333333333333333"
    with pytest.raises(Cut):
        run_training(recipe, drawn_records, tmp_path / "run", hours, write_line=cut_at(6))
    config = runs.open_run(tmp_path / "run").config
    assert (config.train.steps, config.train.hours) == (120, 0.0)
    with pytest.raises(Cut):
        run_training(recipe, drawn_records, tmp_path / "run", hours, write_line=cut_at(8))
    with pytest.raises(ConfigError, match=r"steps"):
        configs.load_config(None, ["train.hours=1", "train.steps=5"])


def test_hours_leave_time_for_validation(drawn_records):
    """Ten passes of 4 images, each a third of a step's time an image; or one every second step."""
    records = reader.open_records(str(drawn_records))
    settings = configs.TrainConfig(hours=1 / 3600, batch_size=2)
    assert clock.count_steps(settings, 0.01, None) == 100
    assert clock.count_steps(settings, 0.01, records) == 93  # 1 - 10 * 2 * .01 / 3 seconds are left
    settings = dataclasses.replace(settings, validation_steps=2)
    assert clock.count_steps(settings, 0.01, records) == 75
    assert clock.count_steps(dataclasses.replace(settings, ema=0.9), 0.01, records) == 60
    assert clock.count_steps(settings, 10.0, records) == 1


def test_steps_are_timed(recipe, drawn_records):
    config = configs.load_config(str(recipe))
    records = reader.open_records(str(drawn_records))
    config = clock.resolve(config, records, None, "nowhere", team.ALONE, False, print)
    detector = build.build(config)
    trainer.compile_detector(detector.model, make_losses(config.loss, detector.anchors), config.train)
    begun = time.perf_counter()
    seconds = trainer.time_steps(detector.model, pipeline.training_stream(records, detector.anchors, config))
    assert 0 < seconds < (time.perf_counter() - begun) / 10


def test_validation_that_a_kill_came_before_is_made_up_for(recipe, drawn_records, tmp_path):
    """The same validations and the same best as without the kill, which came after the checkpoint of step 2."""

    def die():
        raise Cut

    run, go_on = prepare(recipe, drawn_records, tmp_path / "run", "train.validation_steps=2", "train.steps=4")
    with pytest.raises(Cut):
        go_on(die)
    assert runs.find_checkpoint(run.path).state["step"] == 2 and validation_rows(run) == []
    metrics = iter([0.75, 0.5])
    assert go_on(lambda: {"mAP": next(metrics), "metric": "voc07"})["best_metric"] == 0.75
    assert validation_rows(run) == [(2, 0.75), (4, 0.5)]
    assert runs.read_best(run.path)["checkpoint"] == "step-00000002"
    hook, lines = Hook(), []
    result = go_on(die, lines.append, (hook,))  # finished, and validated
    assert (result["step"], result["best_metric"], result["loss"], hook.told) == (4, 0.75, None, [])
    assert lines[-1] == "already finished at step 4; raise train.steps to go on"


def test_signal_during_a_validation_ends_it_at_once(recipe, drawn_records, tmp_path):
    def validate():
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("went on")

    run, go_on = prepare(recipe, drawn_records, tmp_path / "run", "train.validation_steps=2", "train.steps=4")
    with pytest.raises(Interrupted, match=r"^saved step 2; run the same command to continue$") as caught:
        go_on(validate)
    assert caught.value.exit_code == 143
    assert runs.find_checkpoint(run.path).state["step"] == 2
    metrics = iter([0.25, 0.5])
    assert go_on(lambda: {"mAP": next(metrics), "metric": "voc07"})["best_metric"] == 0.5
    assert validation_rows(run) == [(2, 0.25), (4, 0.5)]


def test_best_of_a_damaged_checkpoint_does_not_count(recipe, drawn_records, tmp_path):
    """Going on from step 2, the best is what it was there: .25 beats it."""
    overrides = ("train.validation_steps=2", "train.steps=4", "train.checkpoint_steps=1")
    run, go_on = prepare(recipe, drawn_records, tmp_path / "run", *overrides)
    metrics = iter([0.125, 0.75, 0.25])
    validate = lambda: {"mAP": next(metrics), "metric": "voc07"}  # noqa: E731
    assert go_on(validate)["best_metric"] == 0.75
    (run.path / "step-00000004" / runs.WEIGHTS).write_bytes(b"")
    lines = []
    assert go_on(validate, lines.append)["best_metric"] == 0.25
    assert lines[:2] == ["checkpoint step-00000004 incomplete, using step-00000003", "going on from step 3"]
    best = {"checkpoint": "step-00000004", "metric": "voc07", "value": 0.25, "weights": runs.WEIGHTS}
    assert runs.read_best(run.path) == best


def test_checkpoint_is_found_and_verified_once(recipe, drawn_records, tmp_path, monkeypatch):
    run_training(recipe, drawn_records, tmp_path / "run", "train.steps=2")
    hashed, sha256_file = [], fileio.sha256_file

    def count(path):
        hashed.append(path.parent.name)
        return sha256_file(path)

    monkeypatch.setattr(fileio, "sha256_file", count)
    run_training(recipe, drawn_records, tmp_path / "run", "train.steps=2")
    assert hashed == ["step-00000002"] * 2  # weights and optimizer


def test_loss_parts_are_those_of_the_step_alone(tmp_path):
    """Running means of 4, 8 and infinity; the second interval begins with step 3."""
    config = configs.replace(configs.Config(), train__steps=9, train__log_steps=2)
    run = runs.start_run(tmp_path / "run", config, LabelMap(("cat",)), 8)
    guard = callbacks.FiniteGuard(run, 0, lambda step: step / 100, lambda step: [f"id {step}", "b\n"])

    def means(loss, class_loss, box_loss):
        return {"loss": loss, "class_logits_loss": class_loss, "box_deltas_loss": box_loss}

    guard(1, means(5.0, 1.0, 3.5))
    guard(2, means(6.0, 2.0, 3.5))
    guard(3, means(10.0, 4.0, 5.0))
    with pytest.raises(TrainingError) as caught:
        guard(4, means(float("inf"), 5.0, float("inf")))
    assert str(caught.value) == (
        "step 4: the loss is inf (class_loss 6, box_loss inf, weight decay nan), learning rate 0.03, "
        "images id 4, b\\n: try a lower train.learning_rate"
    )


def test_xla_is_left_out_of_deterministic_training(small_backbone):
    config = configs.load_config(None, ["model.backbone=small", "model.weights=none", "model.num_classes=2"])
    config = configs.replace(config, train__jit_compile=True, train__steps=2, model__image_size=(64, 64))
    for deterministic in (False, True):
        detector = build.build(config)
        losses = make_losses(config.loss, detector.anchors)
        trainer.compile_detector(detector.model, losses, config.train, deterministic)
        assert detector.model.jit_compile is not deterministic
