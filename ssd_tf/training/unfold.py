"""Batch norms that were folded into convolutions, made fit for training.

Converters fold a trained batch norm into the convolution before it; what is left of it is a shift (and, behind a
depthwise convolution, a scale), with a mean of 0 and one variance for all channels. In training mode such a batch
norm would renormalise its input by the true statistics, and the features would be lost. So these are measured, and
scale and shift set such that the function stays what it was.
"""

import keras
import numpy as np
from keras import ops

from ssd_tf.models import detector

_BATCH = 4  # images at a time: the maps before all batch norms are held at once


def find_folded(model):
    """Returns the batch norms of a model that were folded: their statistics are no data's, scale or shift are.

    Args:
      model: keras.Model; a batch norm as initialised does not count as folded.
    """
    return [layer for layer in detector.batch_norms(model) if _is_folded(layer)]


def _is_folded(layer):
    if layer.gamma is None or layer.beta is None:  # nothing could make up for new statistics
        return False
    gamma, beta, mean, variance = map(ops.convert_to_numpy, layer.weights)
    is_new = np.all(gamma == 1) and np.all(beta == 0) and np.all(variance == 1)
    return bool(np.all(mean == 0) and np.all(variance == variance[0]) and not is_new)


def unfold(model, images):
    """Gives the folded batch norms of a detector the statistics of their inputs; its outputs stay.

    Args:
      model: keras.Model of models.detector.
      images: uint8 [N, H, W, 3] RGB, as in training.

    Returns:
      number of batch norms changed.
    """
    folded = set(find_folded(model))
    pixels = keras.Model(model.inputs[0], model.get_layer("preprocess").output)
    for holder, feed in [(model, lambda batch: batch), *((inner, pixels) for inner in _inner_models(model))]:
        layers = [layer for layer in holder.layers if layer in folded]
        if layers:
            for layer, mean, variance in zip(layers, *_measure(holder, layers, feed, images), strict=True):
                _set_statistics(layer, mean, variance)
    return len(folded)


def _inner_models(model):
    return [layer for layer in model.layers if isinstance(layer, keras.Model)]


def _measure(holder, layers, feed, images):
    """(means, variances) of the layers' inputs over all images and positions, float64 [C] each."""
    # Where a layer is called twice, as in a dual path, its first call sees the full resolution.
    inputs = [ops.cast(layer._inbound_nodes[0].input_tensors[0], "float32") for layer in layers]
    moments = [reduce(x, axis=(1, 2)) for reduce in (ops.mean, ops.var) for x in inputs]
    probe = keras.Model(holder.inputs[0], moments)
    batches = [feed(images[first : first + _BATCH]) for first in range(0, len(images), _BATCH)]
    rows = [[ops.convert_to_numpy(value) for value in probe(batch, training=False)] for batch in batches]
    columns = [np.concatenate(column).astype(np.float64) for column in zip(*rows, strict=True)]
    means, variances = columns[: len(layers)], columns[len(layers) :]
    # All images have as many positions: the variance of all is the mean one within an image plus that between.
    return (
        [mean.mean(axis=0) for mean in means],
        [within.mean(axis=0) + mean.var(axis=0) for mean, within in zip(means, variances, strict=True)],
    )


def _set_statistics(layer, mean, variance):
    before = {
        name: ops.convert_to_numpy(getattr(layer, name)).astype(np.float64)
        for name in ("gamma", "beta", "moving_mean", "moving_variance")
    }
    slope = before["gamma"] / np.sqrt(before["moving_variance"] + layer.epsilon)
    layer.gamma.assign(slope * np.sqrt(variance + layer.epsilon))
    layer.beta.assign(before["beta"] + slope * (mean - before["moving_mean"]))
    layer.moving_mean.assign(mean)
    layer.moving_variance.assign(variance)


def first_images(stream, count):
    """Returns uint8 [count, H, W, 3]: the images of the first batches of an endless training stream.

    Args:
      stream: iterable of (images, targets, weight).
      count: how many.
    """
    batches, images = iter(stream), []
    while len(images) < count:
        images += list(np.asarray(next(batches)[0]))
    return np.stack(images[:count])
