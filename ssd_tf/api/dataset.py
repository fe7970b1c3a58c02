"""Config and records to a tf.data.Dataset."""

from ssd_tf import config as configs
from ssd_tf.api import build
from ssd_tf.data import pipeline
from ssd_tf.errors import ConfigError
from ssd_tf.records import reader


def make_dataset(config, records, training, start=0):
    """Builds the data set that a model of `build_detector` trains or validates on. Reads no weights.

    Args:
      config: Config.
      records: records directory, glob, or several separated by commas.
      training: True: endless, shuffled and augmented; False: one finite pass.
      start: examples already consumed, where training.

    Returns:
      tf.data.Dataset of (uint8 [B, H, W, 3], {"class_logits": int32 [B, A], "box_deltas": float32 [B, A, 5]},
      float32 [B]), for Model.fit; an endless one needs steps_per_epoch.

    Raises:
      ConfigError: model.num_classes is set to another number than the records have.
      DataError: missing or incomplete records.
    """
    opened = reader.open_records(records)
    config = with_classes(config, opened)
    anchors = build.build_anchors(config)
    if training:
        return pipeline.training_stream(opened, anchors, config, start)
    return pipeline.validation_batches(opened, anchors, config)


def with_classes(config, records):
    """Returns `config` with the number of classes that the records have.

    Args:
      config: Config.
      records: reader.RecordSet.

    Raises:
      ConfigError: model.num_classes is another number.
    """
    classes = len(records.label_map)
    if config.model.num_classes not in (0, classes):
        raise ConfigError(f"model.num_classes is {config.model.num_classes}, the records have {classes} classes")
    return configs.replace(config, model__num_classes=classes)
