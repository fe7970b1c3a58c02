"""Config and records to a trained run directory."""

import math
import warnings

import keras

from ssd_tf import fileio, runs
from ssd_tf.api import build, clock, reports, start
from ssd_tf.data import anchor_fit, pipeline
from ssd_tf.errors import ConfigError
from ssd_tf.records import reader
from ssd_tf.training import devices, trainer
from ssd_tf.training import team as teams
from ssd_tf.training.losses import make_losses


def train(
    config=None,
    train=None,
    run_dir=None,
    val=None,
    write_line=print,
    skip_corrupt_records=False,
    deterministic=False,
    check_anchors=False,
    init_from=None,
    overrides=(),
):
    """Trains a detector, or goes on with a training that was interrupted.

    Order of initialisation: the run's own last checkpoint; else the weights of `init_from` where they fit; else
    model.weights for the backbone and random numbers for the rest.

    Args:
      config: Config; None with `init_from` for that run's own.
      train: records to train on.
      run_dir: run directory to make or to continue.
      val: records to validate on while training, or None.
      write_line: function (text) for the console.
      skip_corrupt_records: leave out what follows a damaged record in its shard, counted, instead of stopping.
      deterministic: use deterministic operations alone, in this process from here on; no XLA.
      check_anchors: tell first how many boxes no anchor fits, by class.
      init_from: run directory to start from, or None; the classes are those of `train` in any case.
      overrides: "section.key=value" texts that change the config of `init_from`.

    Returns:
      dict: run_dir, step, resumed_from, best_metric (None without val), loss.

    Raises:
      ConfigError, DataError, TrainingError, EnvironmentFault, Interrupted: one line each.
    """
    origin = start.open_origin(init_from, run_dir, write_line) if init_from else None
    config = start.make_config(config, init_from, run_dir, overrides)
    if config.train.early_stopping and not val:
        raise ConfigError("train.early_stopping needs validation: give --val")
    devices.let_memory_grow()
    team = teams.form(config.train)
    build.check(config, load_weights=team.is_chief and runs.latest_name(run_dir) is None)
    records = reader.open_records(train, skip_corrupt_records)
    val_records = reader.open_records(val, skip_corrupt_records) if val else None
    _check_records(records, val_records, write_line)
    with devices.refusals(config):
        beyond_reach = devices.make_deterministic() if deterministic else []
        config = clock.resolve(config, records, val_records, run_dir, deterministic, write_line)
        if not team.is_chief:
            return {"run_dir": str(run_dir), **_follow(config, records, team, deterministic, write_line)}
        fileio.make_directory(run_dir)
        with fileio.directory_lock(run_dir):
            run = runs.start_run(run_dir, config, records.label_map, records.num_examples + records.num_lost)
            for name in runs.remove_leftovers(run.path):
                write_line(f"removed {name}, which an interrupted write left behind")
            last = runs.find_checkpoint(run.path)
            detector, remarks = _build(config, last is None, team)
            if last is None:
                start.prepare(detector, config, records, origin, run.path, write_line)
            _compile(detector, config, deterministic, team)
            lines = _start_lines(config, detector.model, records, init_from, deterministic, team)
            for line in (*lines, *remarks, *beyond_reach):
                write_line(line)
            if check_anchors:
                for line in anchor_fit.describe(records, detector.anchors, config):
                    write_line(line)
            validation = reports.Validation(detector, run, val_records) if val_records else None
            with reader.record_errors(records):
                result = trainer.train(
                    detector.model,
                    _stream_maker(records, detector, config, team),
                    run,
                    validation,
                    write_line,
                    reports.make_hooks(run, validation, write_line),
                    last,
                    lambda step: pipeline.read_batch_ids(records, config, step),
                    deterministic,
                    team,
                )
            reports.finish(run, result["step"], records, detector.anchors, validation, write_line)
    return {"run_dir": str(run_dir), **result}


def _build(config, load_weights, team):
    """The detector, and what was remarked while it was built."""
    keras.utils.set_random_seed(config.train.seed)
    with warnings.catch_warnings(record=True) as caught, team.scope():
        warnings.simplefilter("always", UserWarning)
        detector = build.build(config, load_weights, config.train.precision)
    return detector, [str(warning.message) for warning in caught]


def _compile(detector, config, deterministic, team):
    losses = make_losses(config.loss, detector.anchors)
    trainer.compile_detector(detector.model, losses, config.train, deterministic, team)


def _stream_maker(records, detector, config, team):
    return lambda done: pipeline.training_stream(
        records, detector.anchors, config, done, team.worker, team.num_workers
    )


def _follow(config, records, team, deterministic, write_line):
    """Trains as a worker that is not the chief: it takes the chief's weights, and writes nothing."""
    detector, _ = _build(config, False, team)
    _compile(detector, config, deterministic, team)
    write_line(team.describe())
    with reader.record_errors(records):
        step = trainer.follow(detector.model, _stream_maker(records, detector, config, team), config, team)
    return {"step": step, "resumed_from": None, "best_metric": None, "loss": None}


def _check_records(records, val_records, write_line):
    """Says what is noteworthy about the records; DataError where validation has other classes."""
    if val_records:
        records.label_map.check_same(val_records.label_map, "--train has", "--val has")
    for note in (*records.notes, *(val_records.notes if val_records else ())):
        write_line(note)


def _start_lines(config, model, records, init_from, deterministic, team):
    settings = config.train
    if team.strategy:
        yield team.describe()
    epochs = settings.steps * settings.batch_size / records.num_examples
    yield (
        f"{config.model.backbone} {config.model.image_size[1]}x{config.model.image_size[0]}, "
        f"{model.count_params():,} parameters, {settings.precision} on {_device()}"
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


def _device():
    devices = keras.distribution.list_devices()
    return next((device for device in devices if "cpu" not in device.lower()), devices[0] if devices else "cpu")
