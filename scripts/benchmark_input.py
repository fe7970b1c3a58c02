"""Input pipeline with augmentation and targets, beside decoding and resizing alone.

python scripts/benchmark_input.py --records=tfrecords/bccd_trainval [--config=NAME] [--set=KEY=VALUE]

Parts of the augmentation are measured by switching them on: --set=augment.mosaic_probability=1
"""

import argparse
import time

import tensorflow as tf
import timing

from ssd_tf import config as configs
from ssd_tf.api import build
from ssd_tf.data import pipeline
from ssd_tf.records import reader, schema

_BATCHES = 60
_STEPS = 10**9  # of the training that is measured: the last of a training mix no images


def main():
    """Prints images per second of both, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", required=True)
    parser.add_argument("--config", default=configs.DEFAULT_RECIPE)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--rounds", type=int, default=11)
    options = parser.parse_args()
    records = reader.open_records(options.records)
    config = configs.load_config(options.config, options.set)
    config = configs.replace(config, model__num_classes=len(records.label_map), train__steps=_STEPS)
    ours = pipeline.training_stream(records, build.build_anchors(config), config)
    plain = decode_and_resize(records, config)
    seconds = timing.alternate({"pipeline": _taker(ours), "decode_resize": _taker(plain)}, options.rounds)
    images = _BATCHES * config.train.batch_size
    begun = time.process_time()
    _taker(ours)()
    timing.report(
        "input",
        images_per_second=images / timing.median(seconds)["pipeline"],
        decode_resize_images_per_second=images / timing.median(seconds)["decode_resize"],
        cpu_ms_per_image=(time.process_time() - begun) / images * 1000,
        share_of_decode_resize=timing.ratio(seconds, "decode_resize", "pipeline"),
        batch=config.train.batch_size,
    )


def decode_and_resize(records, config):
    """The ceiling: whole images decoded in the fastest form and resized, nothing else."""
    dataset = tf.data.TFRecordDataset(list(records.files)).repeat()

    def prepare(serialized):
        feature = {schema.ENCODED: tf.io.FixedLenFeature([], tf.string)}
        encoded = tf.io.parse_single_example(serialized, feature)[schema.ENCODED]
        return tf.image.resize(tf.io.decode_jpeg(encoded, channels=3), config.model.image_size)

    dataset = dataset.map(prepare, tf.data.AUTOTUNE).batch(config.train.batch_size, drop_remainder=True)
    return dataset.prefetch(tf.data.AUTOTUNE)


def _taker(dataset):
    """A function that draws batches from a new iterator: an idle one would go on filling its buffer."""

    def take():
        iterator = iter(dataset)
        for _ in range(_BATCHES):
            next(iterator)

    return take


if __name__ == "__main__":
    main()
