"""Config and records to a trained run directory."""

import math
import warnings

import keras

from ssd_tf import config as configs
from ssd_tf import fileio, runs
from ssd_tf.api import build, evaluate
from ssd_tf.data import pipeline
from ssd_tf.errors import ConfigError
from ssd_tf.inference.predictor import Predictor
from ssd_tf.records import reader
from ssd_tf.training import trainer


def train(config, train, run_dir, val=None, write_line=print):
    """Trains a detector, or goes on with a training that was interrupted.

    Order of initialisation: the run's own last checkpoint; else model.weights for the backbone and random
    numbers for the rest.

    Args:
      config: Config.
      train: records to train on.
      run_dir: run directory to make or to continue.
      val: records to validate on while training, or None.
      write_line: function (text) for the console.

    Returns:
      dict: run_dir, step, resumed_from, best_metric (None without val), loss.

    Raises:
      ConfigError, DataError, TrainingError, EnvironmentFault, Interrupted: one line each.
    """
    records = reader.open_records(train)
    val_records = reader.open_records(val) if val else None
    if val_records:
        records.label_map.check_same(val_records.label_map, "--train has", "--val has")
    config = resolve(config, records)
    fileio.make_directory(run_dir)
    with fileio.directory_lock(run_dir):
        run = runs.start_run(run_dir, config, records.label_map, records.num_examples)
        resuming = runs.find_checkpoint(run.path) is not None
        keras.utils.set_random_seed(config.train.seed)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            detector = build.build(config, load_weights=not resuming, precision=config.train.precision)
        trainer.compile_detector(detector.model, build.make_losses(config.loss), config.train)
        for line in [*_start_lines(config, detector.model, records), *(str(w.message) for w in caught)]:
            write_line(line)
        validate = _validator(detector, run, val_records) if val_records else None
        with reader.record_errors(records.files):
            result = trainer.train(
                detector.model,
                lambda start: pipeline.training_stream(records, detector.anchors, config, start),
                run,
                validate,
                write_line,
            )
    return {"run_dir": str(run_dir), **result}


def resolve(config, records):
    """Returns `config` with what the records decide: number of classes, steps."""
    classes = len(records.label_map)
    if config.model.num_classes not in (0, classes):
        raise ConfigError(f"model.num_classes is {config.model.num_classes}, the records have {classes} classes")
    return configs.resolve_steps(configs.replace(config, model__num_classes=classes), records.num_examples)


def _start_lines(config, model, records):
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
    if settings.freeze_batch_norm and config.model.weights == "none":
        yield "the backbone has no weights but frozen batch norms: consider --set train.freeze_batch_norm=false"
    if settings.batch_size > records.num_examples:
        repeated = settings.batch_size - records.num_examples
        yield f"{repeated} examples repeat inside a batch of {settings.batch_size} (train.batch_size)"


def _device():
    devices = keras.distribution.list_devices()
    return next((device for device in devices if "cpu" not in device.lower()), devices[0] if devices else "cpu")


def _validator(detector, run, records):
    """A function () -> result that scores the model as it is now."""
    predictor = Predictor(detector.model, detector.anchors, run.config, run.label_map)
    truths = reader.read_examples(records)
    settings = run.config.train

    def validate():
        found, _ = evaluate.detect(predictor, records, settings.batch_size)
        return evaluate.score(truths, found, records.label_map, settings.validation_metric)

    return validate
