"""Small detectors and made-up batches for the tests of networks."""

import numpy as np

from ssd_tf import config as configs

NUM_CLASSES = 3


def make_config(backbone, side=128, **leaves):
    """A Config of a small detector with no weights to read."""
    return configs.replace(
        configs.Config(),
        model__backbone=backbone,
        model__image_size=(side, side),
        model__num_classes=NUM_CLASSES,
        model__weights="none",
        **leaves,
    )


def random_batch(num_anchors, side, batch=4, seed=0):
    """Noise images, and targets with one positive in five and one ignored anchor in ten."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (batch, side, side, 3), np.uint8)
    kind = rng.random((batch, num_anchors))
    kind[:, -1] = 0  # the coarsest map must learn something too, and it has the fewest anchors
    labels = np.where(kind < 0.2, rng.integers(1, NUM_CLASSES + 1, kind.shape), np.where(kind > 0.9, -1, 0))
    positive = (labels > 0).astype(np.float32)[..., None]
    deltas = rng.normal(0, 2, (batch, num_anchors, 4)).astype(np.float32)
    targets = {
        "class_logits": labels.astype(np.int32),
        "box_deltas": np.concatenate([deltas * positive, positive], axis=-1),
    }
    return images, targets, np.full(batch, batch / positive.sum(), np.float32)
