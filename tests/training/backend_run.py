"""A short training for test_backends.py, which runs this file under another Keras backend too.

python backend_run.py RECORDS ORIGIN RUN
"""

import json
import sys

import numpy as np
import small_network

import ssd_tf
from ssd_tf import config as configs

_OVERRIDES = (
    "model.backbone=small",
    "model.weights=none",
    "model.image_size=64",
    "train.batch_size=2",
    "train.learning_rate=0.01",
    "train.freeze_batch_norm=true",
    "train.checkpoint_steps=10",
    "train.validation_steps=10",
    "train.log_steps=1",  # every step's own losses
)


def train(records, run_dir, origin=None, val=None, steps=20):
    """Trains the small network from the weights of another run, or goes on; nothing is printed."""
    config = configs.load_config(None, [*_OVERRIDES, f"train.steps={steps}"])
    ssd_tf.train(config, records, run_dir, val, write_line=lambda _: None, init_from=origin)


def detect(run_dir):
    """Returns what a run finds in an image of noise: [boxes, scores, classes]."""
    image = np.random.default_rng(0).integers(0, 256, (80, 100, 3), np.uint8)
    found = ssd_tf.load(run_dir)(image)
    return [values.tolist() for values in (found.boxes, found.scores, found.classes)]


def main(records, origin, run_dir):
    """Trains, validating twice, and prints what the result detects."""
    train(records, run_dir, origin, val=records)
    print(json.dumps(detect(run_dir)))


if __name__ == "__main__":
    small_network.register()
    main(*sys.argv[1:])
