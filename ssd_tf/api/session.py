"""One session of a training: its network, its part of the examples, and what is told of it at its start."""

import math
import warnings

from ssd_tf.api import build
from ssd_tf.data import pipeline
from ssd_tf.records import reader
from ssd_tf.training import devices, trainer
from ssd_tf.training.losses import make_losses


def build_detector(config, load_weights, team):
    """Builds the network on all devices of a team.

    Args:
      config: resolved Config.
      load_weights: whether to read model.weights.
      team: training.team.Team.

    Returns:
      (build.Detector, list of the warnings that came up).
    """
    devices.set_seed(config.train.seed)
    with warnings.catch_warnings(record=True) as caught, team.scope():
        warnings.simplefilter("always", UserWarning)
        detector = build.build(config, load_weights, config.train.precision)
    return detector, [str(warning.message) for warning in caught]


def compile_detector(detector, config, deterministic, team):
    """Makes a detector ready to train; see trainer.compile_detector."""
    losses = make_losses(config.loss, detector.anchors)
    trainer.compile_detector(detector.model, losses, config.train, deterministic, team)


def make_streams(records, detector, config, team):
    """Returns a function (examples already consumed) -> this worker's endless data set."""
    return lambda done: pipeline.training_stream(
        records, detector.anchors, config, done, team.worker, team.num_workers
    )


def follow(config, records, team, deterministic, write_line):
    """Trains as a worker that is not the chief: it takes the chief's weights, and writes nothing.

    Args:
      config: resolved Config.
      records: reader.RecordSet to train on.
      team: training.team.Team.
      deterministic: see devices.make_deterministic.
      write_line: function (text) for the console.

    Returns:
      dict as trainer.train's; what the chief alone knows is None.
    """
    detector, _ = build_detector(config, False, team)
    compile_detector(detector, config, deterministic, team)
    write_line(team.describe())
    with reader.record_errors(records):
        step = trainer.follow(detector.model, make_streams(records, detector, config, team), config, team)
    return {"step": step, "resumed_from": None, "best_metric": None, "loss": None}


def describe(config, model, records, init_from, deterministic, team):
    """Yields the lines that open a training.

    Args:
      config: resolved Config.
      model: keras.Model.
      records: reader.RecordSet to train on.
      init_from: run that it starts from, or None.
      deterministic: see devices.make_deterministic.
      team: training.team.Team.
    """
    settings = config.train
    if team.strategy:
        yield team.describe()
    epochs = settings.steps * settings.batch_size / records.num_examples
    yield (
        f"{config.model.backbone} {config.model.image_size[1]}x{config.model.image_size[0]}, "
        f"{model.count_params():,} parameters, {settings.precision} on {devices.name_device()}"
    )
    yield (
        f"{records.num_examples:,} images, {len(records.label_map)} classes; {settings.steps:,} steps of "
        f"{settings.batch_size} (about {math.ceil(epochs * 10) / 10:g} epochs)"
    )
    if settings.freeze_batch_norm and config.model.weights == "none" and not init_from:
        yield "the backbone has no weights but frozen batch norms: consider --set train.freeze_batch_norm=false"
    if deterministic and settings.jit_compile:
        yield "train.jit_compile is off under --deterministic"
    if settings.batch_size > records.num_examples:
        repeated = settings.batch_size - records.num_examples
        yield f"{repeated} examples repeat inside a batch of {settings.batch_size} (train.batch_size)"
