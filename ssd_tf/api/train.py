"""Config and records to a trained run directory."""

import math
import warnings

import keras

from ssd_tf import config as configs
from ssd_tf import fileio, runs
from ssd_tf.api import build, dataset, reports, start
from ssd_tf.data import anchor_fit, pipeline
from ssd_tf.records import reader
from ssd_tf.training import devices, trainer
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
    build.check(config, load_weights=runs.latest_name(run_dir) is None)
    records = reader.open_records(train, skip_corrupt_records)
    val_records = reader.open_records(val, skip_corrupt_records) if val else None
    _check_records(records, val_records, write_line)
    config = resolve(config, records)
    fileio.make_directory(run_dir)
    devices.let_memory_grow()
    with fileio.directory_lock(run_dir), devices.refusals(config):
        run = runs.start_run(run_dir, config, records.label_map, records.num_examples + records.num_lost)
        for name in runs.remove_leftovers(run.path):
            write_line(f"removed {name}, which an interrupted write left behind")
        last = runs.find_checkpoint(run.path)
        keras.utils.set_random_seed(config.train.seed)
        beyond_reach = devices.make_deterministic() if deterministic else []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            detector = build.build(config, load_weights=last is None, precision=config.train.precision)
        if last is None:
            start.prepare(detector, config, records, origin, run.path, write_line)
        losses = make_losses(config.loss, detector.anchors)
        trainer.compile_detector(detector.model, losses, config.train, deterministic)
        lines = [
            *_start_lines(config, detector.model, records, init_from, deterministic),
            *(str(w.message) for w in caught),
            *beyond_reach,
        ]
        for line in lines:
            write_line(line)
        if check_anchors:
            for line in anchor_fit.describe(records, detector.anchors, config):
                write_line(line)
        validation = reports.Validation(detector, run, val_records) if val_records else None
        with reader.record_errors(records):
            result = trainer.train(
                detector.model,
                lambda done: pipeline.training_stream(records, detector.anchors, config, done),
                run,
                validation,
                write_line,
                reports.make_hooks(run, validation, write_line),
                last,
                lambda step: pipeline.read_batch_ids(records, config, step),
                deterministic,
            )
        reports.finish(run, result["step"], records, detector.anchors, validation, write_line)
    return {"run_dir": str(run_dir), **result}


def _check_records(records, val_records, write_line):
    """Says what is noteworthy about the records; DataError where validation has other classes."""
    if val_records:
        records.label_map.check_same(val_records.label_map, "--train has", "--val has")
    for note in (*records.notes, *(val_records.notes if val_records else ())):
        write_line(note)


def resolve(config, records):
    """Returns `config` with what the records decide: number of classes, steps."""
    return configs.resolve_steps(dataset.with_classes(config, records), records.num_examples)


def _start_lines(config, model, records, init_from, deterministic):
    settings = config.train
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
