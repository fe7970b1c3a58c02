"""What every backbone must pass, whoever wrote it; each check gets a built detector and its Config."""

import re

import keras
import numpy as np
import tensorflow as tf
from backbone_cases import NUM_CLASSES, random_batch

from ssd_tf.api import build
from ssd_tf.models import registry
from ssd_tf.models.detector import all_layers
from ssd_tf.training.losses import make_losses


def check_rows(detector):
    """As many rows as anchors, and as many anchors as the maps ask for."""
    count = len(detector.anchors)
    shapes = {key: value.shape for key, value in detector.model.output.items()}
    assert shapes == {"class_logits": (None, count, NUM_CLASSES + 1), "box_deltas": (None, count, 4)}
    last = len(detector.map_sizes) - 1
    per_cell = [4 if level in (0, last - 1, last) else 6 for level in range(last + 1)]
    assert count == sum(h * w * n for (h, w), n in zip(detector.map_sizes, per_cell, strict=True))


def check_places(detector, config):
    """A bright spot in one corner moves the first level's rows of that corner most."""
    side = config.model.image_size[0]
    cell = side // 16
    image = np.zeros((1, side, side, 3), np.uint8)
    spot = image.copy()
    around = [slice(centre * cell - cell // 2, centre * cell + cell // 2) for centre in (12, 4)]
    pixels = spot[:, around[0], around[1]]
    pixels[:] = np.random.default_rng(0).integers(0, 256, pixels.shape)
    change = np.abs(np.subtract(*(detector.model(x, training=False)["box_deltas"] for x in (spot, image))))[0]
    rows, columns = detector.map_sizes[0]
    # Squares: networks with large receptive fields move everywhere a little.
    level = np.square(change[: rows * columns * 4].sum(axis=1))
    anchors = detector.anchors[: len(level)]
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    middle = (centres * level[:, None]).sum(axis=0) / level.sum()
    np.testing.assert_allclose(middle, [12 / 16, 4 / 16], atol=0.1)


def check_gradients(detector, config):
    """Every weight gets a finite gradient, and all but shifts that feed a batch norm one that is not zero.

    A batch norm takes constants away again: that of a convolution's bias before it, and of another norm's shift.
    """
    side = config.model.image_size[0]
    images, targets, weight = random_batch(len(detector.anchors), side)
    losses = make_losses(config.loss, detector.anchors)
    with tf.GradientTape() as tape:
        outputs = detector.model(images, training=True)
        loss = sum(losses[key](targets[key], outputs[key], sample_weight=weight) for key in losses)
    weights = detector.model.trainable_weights
    assert np.isfinite(loss)
    still = set()
    for variable, gradient in zip(weights, tape.gradient(loss, [w.value for w in weights]), strict=True):
        assert gradient is not None, variable.path
        assert np.all(np.isfinite(gradient)), variable.path
        if np.max(np.abs(gradient)) < 1e-6:
            still.add(variable.path)
    assert all(path.endswith(("/bias", "/beta")) for path in still), still
    heads = [layer for layer in all_layers(detector.model) if registry.layer_group(layer) == "heads"]
    assert not still & {variable.path for layer in heads for variable in layer.trainable_weights}


def check_saving(detector, config, folder):
    """Weights that come back from disk give identical outputs."""
    other = build.build(config).model
    side = config.model.image_size[0]
    images = random_batch(1, side, batch=1)[0]
    before = detector.model(images, training=False)
    assert not np.array_equal(before["class_logits"], other(images, training=False)["class_logits"])
    detector.model.save_weights(folder / "a.weights.h5")
    other.load_weights(folder / "a.weights.h5")
    after = other(images, training=False)
    for key, value in before.items():
        assert np.array_equal(after[key], value), key
    return other


def check_names(first, second, config):
    """A second build has the same weights and taps the same layers."""
    assert [_kind(weight) for weight in first.weights] == [_kind(weight) for weight in second.weights]
    taps = [_taps(model) for model in (first, second)]
    layout = registry.get_layout(registry.get_backbone(config.model.backbone), config.model)
    for one, other, tap in zip(*taps, layout.taps, strict=True):
        # Where Keras counts up the names, the index finds the same kind of layer.
        assert (one.name == other.name == tap) if isinstance(tap, str) else type(one) is type(other)
        assert one.output.shape == other.output.shape


def _kind(weight):
    """A weight's path without the numbers that Keras counts up, and its shape."""
    return re.sub(r"_\d+\b", "", weight.path), tuple(weight.shape)


def _taps(model):
    return [output._keras_history.operation for output in model.get_layer("backbone").outputs]


def check_precision(detector, config):
    """Under bfloat16 the backbone computes in it, the outputs are float32, and near those of float32."""
    mixed = build.build(config, precision="mixed_bfloat16").model
    assert keras.config.dtype_policy().name == "float32"
    kernels = [layer for layer in all_layers(mixed) if any("kernel" in weight.name for weight in layer.weights)]
    kinds = {layer.compute_dtype for layer in kernels if registry.layer_group(layer) == "backbone"}
    assert kinds == {"bfloat16"}
    mixed.set_weights(detector.model.get_weights())
    images = random_batch(1, config.model.image_size[0], batch=1)[0]
    expected = detector.model(images, training=False)
    for key, value in mixed(images, training=False).items():
        assert value.dtype == np.float32
        difference = np.max(np.abs(value - expected[key]))
        # Arithmetic of 8 bits gives other numbers, but near ones.
        assert 0 < difference < 0.2 * np.max(np.abs(expected[key])), key
