"""The training loop with everything that hangs on it, beside the bare compiled step, on one cached batch.

python scripts/benchmark_train_step.py [--config=NAME] [--set=KEY=VALUE] [--steps=40]
"""

import argparse
import tempfile

import numpy as np
import tensorflow as tf
import timing

from ssd_tf import config as configs
from ssd_tf import runs
from ssd_tf.api import build
from ssd_tf.data import targets
from ssd_tf.structures import LabelMap
from ssd_tf.training import trainer
from ssd_tf.training.losses import make_losses

_CLASSES = 20


def main():
    """Prints milliseconds a step of both, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default=configs.DEFAULT_RECIPE)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--steps", type=int, default=40, help="steps of a timed block")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    config = configs.load_config(
        options.config, ["model.weights=none", f"model.num_classes={_CLASSES}", *options.set]
    )
    config = configs.replace(config, train__epochs=0.0, train__steps=options.steps, train__log_steps=10)
    config = configs.replace(config, train__checkpoint_steps=10**9)
    model, anchors = _ready(config)
    batch = _batch(config, anchors)
    model.fit(tf.data.Dataset.from_tensors(batch), verbose=0)  # builds train_function
    bare = iter(tf.data.Dataset.from_tensors(batch).repeat())

    def bare_steps():
        for _ in range(options.steps):
            logs = model.train_function(bare)
        return float(logs["loss"])

    def loop():
        with tempfile.TemporaryDirectory() as folder:
            run = runs.start_run(folder, config, LabelMap(tuple(f"class {i}" for i in range(_CLASSES))), 1)
            stream = tf.data.Dataset.from_tensors(batch).repeat()
            trainer.train(model, lambda _: stream, run, write_line=lambda _: None)

    seconds = timing.alternate({"bare": bare_steps, "loop": loop}, options.rounds, warm_up=1)
    medians = timing.median(seconds)
    timing.report(
        "train_step",
        config=options.config,
        bare_ms=medians["bare"] / options.steps * 1e3,
        loop_ms=medians["loop"] / options.steps * 1e3,
        loop_over_bare=timing.ratio(seconds, "loop", "bare"),
        bare_images_per_second=options.steps * config.train.batch_size / medians["bare"],
        batch=config.train.batch_size,
    )


def _ready(config):
    detector = build.build(config, precision=config.train.precision)
    trainer.compile_detector(detector.model, make_losses(config.loss, detector.anchors), config.train)
    return detector.model, detector.anchors


def _batch(config, anchors):
    """One batch of noise with five boxes an image."""
    rng = np.random.default_rng(0)
    size = config.train.batch_size
    images = rng.integers(0, 256, (size, *config.model.image_size, 3), np.uint8)
    rows = []
    for _ in range(size):
        corners = rng.uniform(0, 0.6, (5, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(0.1, 0.4, (5, 2))], axis=1).astype(np.float32)
        classes = rng.integers(1, _CLASSES + 1, 5).astype(np.int32)
        rows.append(targets.build_targets(boxes, classes, np.zeros(5, bool), tf.constant(anchors)))
    target = {key: tf.stack([row[key] for row in rows]) for key in rows[0]}
    return tf.constant(images), target, tf.ones(size)


if __name__ == "__main__":
    main()
