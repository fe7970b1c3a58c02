"""Trainings that start from another run: its config, its weights where they fit, folded batch norms unfolded."""

import json
import shutil

import numpy as np
import pytest

from ssd_tf import config as configs
from ssd_tf import runs
from ssd_tf.api import build, clock, predict, start
from ssd_tf.api import train as trains
from ssd_tf.cli import runner
from ssd_tf.cli import train as commands
from ssd_tf.errors import ConfigError, DataError
from ssd_tf.models import detector
from ssd_tf.records import reader
from ssd_tf.structures import LabelMap
from ssd_tf.training import team, unfold

SMALL = ("model.backbone=small", "model.image_size=64", "model.weights=none", "train.batch_size=4")
TRAINED = ("train.steps=2", "train.freeze_batch_norm=false", "train.learning_rate=0.01", "train.schedule=constant")


def train_from(origin, records, run_dir, *overrides, config=None, lines=None):
    write_line = [].append if lines is None else lines.append
    options = {"init_from": origin, "overrides": overrides}
    return trains.train(config, str(records), run_dir, write_line=write_line, **options)


def prepare_from(origin, records, folder, config=None, lines=None):
    """The config and the model of a training that has not taken a step."""
    origin = start.open_origin(origin, folder, print)
    opened = reader.open_records(str(records))
    overrides = ["train.steps=1"] if config is None else ()
    config = start.make_config(config, origin.run.path, folder, overrides)
    config = clock.resolve(config, opened, None, folder, team.ALONE, False, print)
    built = build.build(config, load_weights=False)
    start.prepare(built, config, opened, origin, folder, [].append if lines is None else lines.append)
    return config, built.model


@pytest.fixture
def first(tmp_path, small_backbone):
    """A run of the classes red and blue, at step 2."""
    overrides = ("model.num_classes=2", "anchors.preset=auto_coco", "train.seed=7")
    config = configs.load_config(None, (*SMALL, *TRAINED, *overrides))
    run = runs.start_run(tmp_path / "first", config, LabelMap(("red", "blue")), 4)
    model = build.build(config).model
    runs.save_checkpoint(run.path, 2, lambda folder: model.save_weights(folder / runs.WEIGHTS), {}, 1)
    return run.path


def weights_of(run_dir, layer, inner=None):
    model = predict.load(run_dir).model
    return (model.get_layer(inner).get_layer(layer) if inner else model.get_layer(layer)).get_weights()


def test_config_is_the_runs_and_weights_are_where_the_rate_is_zero(first, drawn_records_of_more_classes, tmp_path):
    lines = []
    still = ("train.learning_rate=0.0", "train.freeze_batch_norm=true", "train.steps=1")
    result = train_from(first, drawn_records_of_more_classes, tmp_path / "second", *still, lines=lines)
    assert result["step"] == 1
    second = predict.load(tmp_path / "second")
    assert second.label_map.names == ("green", "blue", "red")
    assert (second.config.anchors.preset, second.config.train.seed, second.config.model.num_classes) == (
        "auto_coco",
        7,
        3,
    )
    for layer, inner in (("conv0", "backbone"), ("norm2", "backbone"), ("head_2_box_deltas", None)):
        for old, new in zip(weights_of(first, layer, inner), weights_of(tmp_path / "second", layer, inner)):
            np.testing.assert_array_equal(old, new)
    (old, _), (new, _) = (weights_of(run, "head_1_class_logits") for run in (first, tmp_path / "second"))
    np.testing.assert_array_equal(new[..., [0, 2, 3]], old[..., [0, 2, 1]])  # background, blue, red
    tensors = len(second.model.weights)
    assert f"loaded {tensors - 6} of {tensors} tensors of {first}, step-00000002" in lines[0]
    assert lines[1] == "classes kept: blue, red; made anew: green"
    report = json.loads((tmp_path / "second" / start.REPORT).read_text())
    assert (len(report["loaded"]), len(report["partly"]), report["not_loaded"]) == (tensors - 6, 6, [])


def test_config_of_a_recipe_replaces_the_runs(first, drawn_records, tmp_path):
    config = configs.load_config(None, (*SMALL, *TRAINED, "model.weights=imagenet", "model.heads=lite"))
    config, _ = prepare_from(first, drawn_records, tmp_path, config)
    assert (config.model.heads, config.anchors.preset, config.model.weights) == ("lite", "auto", "none")
    report = json.loads((tmp_path / start.REPORT).read_text())
    assert ["head_1_class_logits_depthwise/kernel", "not in the run"] in report["not_loaded"]


def test_resuming_goes_on_from_the_own_checkpoint(first, drawn_records, tmp_path):
    train_from(first, drawn_records, tmp_path / "second", "train.steps=2")
    shutil.rmtree(first)  # which is not needed any more
    lines = []
    result = train_from(first, drawn_records, tmp_path / "second", "train.steps=3", lines=lines)
    assert (result["resumed_from"], result["step"]) == (2, 3)
    assert not any(line.startswith(("loaded", "this run began")) for line in lines)
    train_from(tmp_path / "other", drawn_records, tmp_path / "second", "train.steps=3", lines=lines)
    assert f"this run began from {first}, --init_from={tmp_path / 'other'} is not used" in lines


def test_weights_beside_another_runs_are_refused(first, drawn_records, tmp_path):
    with pytest.raises(ConfigError, match="with --init_from the weights are those of that run"):
        train_from(first, drawn_records, tmp_path / "second", "model.weights=imagenet")


def test_folded_batch_norms_are_unfolded_before_the_first_step(
    first, drawn_records, drawn_images, tmp_path, monkeypatch
):
    def fold(checkpoint, model):
        for layer in detector.batch_norms(model):
            size = layer.gamma.shape[0]
            folded = np.full(size, np.float32(1 - layer.epsilon))
            layer.set_weights([np.ones(size), np.full(size, 0.5), np.zeros(size), folded])

    monkeypatch.setattr(start.checkpoints, "load_weights", fold)
    lines = []
    _, model = prepare_from(first, drawn_records, tmp_path, lines=lines)
    assert "4 batch norms were folded: their statistics are now those of 64 training images" in lines
    assert unfold.find_folded(model) == []


def test_nothing_in_common_is_refused(first, drawn_records, tmp_path):
    config = configs.load_config(None, (*SMALL, *TRAINED, "model.backbone=tiny_ssd_d2l"))
    with pytest.raises(
        DataError, match=r"nothing in common with this network \(small, here tiny_ssd_d2l\): .*first"
    ):
        prepare_from(first, drawn_records, tmp_path, config)


def test_another_input_is_refused(first, drawn_records, tmp_path):
    config = configs.load_config(None, (*SMALL, *TRAINED, "model.preprocessing=caffe"))
    with pytest.raises(ConfigError, match=r"weights expect another input .*: set model\.preprocessing"):
        prepare_from(first, drawn_records, tmp_path, config)


def test_settings_that_weights_depend_on_are_named_where_they_differ(first, drawn_records, tmp_path):
    config = configs.load_config(None, (*SMALL, *TRAINED, "model.norm_epsilon=1e-5"))
    lines = []
    prepare_from(first, drawn_records, tmp_path, config, lines)
    assert "the weights were trained with model.norm_epsilon=0.0, here it is 1e-05" in lines


def test_overrides_are_for_the_runs_config_alone(first, drawn_records, tmp_path):
    config = configs.load_config(None, (*SMALL, *TRAINED))
    with pytest.raises(ConfigError, match="give them to load_config instead"):
        train_from(first, drawn_records, tmp_path / "second", "train.steps=1", config=config)


def test_a_run_cannot_start_from_itself(first, drawn_records):
    with pytest.raises(ConfigError, match="the same: a run goes on by the command that it began with"):
        train_from(first, drawn_records, first)


def test_no_such_run(drawn_records, tmp_path):
    with pytest.raises(DataError, match=r"no such run directory: .*nowhere"):
        train_from(tmp_path / "nowhere", drawn_records, tmp_path / "second")


def test_neither_config_nor_origin(drawn_records, tmp_path):
    with pytest.raises(ConfigError, match="a training needs a config, or init_from"):
        trains.train(None, str(drawn_records), tmp_path / "run")


def test_command_takes_the_runs_config_unless_a_recipe_is_named(first, drawn_records, tmp_path, capsys):
    flags = [f"--init_from={first}", f"--train={drawn_records}", f"--run_dir={tmp_path / 'second'}"]
    assert runner.run(commands.COMMAND, [*flags, "--set", "train.steps=3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["step"] == 3
    assert predict.load(tmp_path / "second").config.anchors.preset == "auto_coco"
    assert runner.run(commands.COMMAND, [*flags, "--set", "train.batchsize=3"]) == 2
    assert "unknown key train.batchsize" in capsys.readouterr().err


def test_unfolding_needs_nothing_where_nothing_is_folded(first):
    assert unfold.find_folded(predict.load(first).model) == []
