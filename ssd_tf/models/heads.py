"""Prediction heads: from feature maps to rows, one row an anchor."""

import keras
from keras import initializers, layers, ops

from ssd_tf.models.layers import conv_block


@keras.saving.register_keras_serializable("ssd_tf")
class MergeBackground(layers.Layer):
    """Makes one column of several that all mean background, so that a softmax gives it the sum of their shares.

    Args:
      columns: how many there are; they come first.
    """

    def __init__(self, columns, **options):
        super().__init__(dtype="float32", **options)
        self.columns = columns

    def call(self, logits):
        background = ops.logsumexp(logits[..., : self.columns], axis=-1, keepdims=True)
        return ops.concatenate([background, logits[..., self.columns :]], axis=-1)

    def get_config(self):
        config = super().get_config()
        config.pop("dtype")
        return {**config, "columns": self.columns}


def add_heads(maps, counts, values, key, kind="conv", bias=0.0, activation="relu6", last="same"):
    """Adds the prediction layers of one output.

    Args:
      maps: list of [B, h, w, c]; for "shared" all with the same c.
      counts: anchors per cell, one int a map.
      values: numbers per anchor.
      key: name of the output; the layers are called head_LEVEL_KEY, or head_shared_KEY.
      kind: "conv" (3x3), "conv1x1", "lite" (depthwise 3x3 and 1x1, as SSDLite in the MobileNetV2 paper), or
        "shared": one 1x1 convolution for all maps, of whose shapes a map with fewer anchors takes the first.
      bias: what the biases start from.
      activation: that between the two convolutions of "lite".
      last: the kind of the last map's, "same" as the others'.

    Returns:
      float32 [B, A, values], whatever the precision policy; fine to coarse, then by row, column and shape.
    """
    shared = _predict(max(counts) * values, 1, f"head_shared_{key}", bias) if kind == "shared" else None
    rows = []
    for level, (x, count) in enumerate(zip(maps, counts, strict=True), 1):
        name = f"head_{level}_{key}"
        own = last if level == len(maps) and last != "same" else kind
        if shared:
            x = shared(x)[..., : count * values]
        elif own == "lite":
            x = conv_block(x, None, 3, f"{name}_depthwise", activation=activation)
            # torchvision's SSDLite initialises its heads with this deviation.
            x = _predict(count * values, 1, name, bias, initializers.RandomNormal(0, 0.03))(x)
        else:
            x = _predict(count * values, 3 if own == "conv" else 1, name, bias)(x)
        num_rows = x.shape[1] * x.shape[2] * count
        rows.append(layers.Reshape((num_rows, values), dtype="float32", name=f"{name}_rows")(x))
    joined = rows[0] if len(rows) == 1 else layers.Concatenate(axis=1, dtype="float32", name=f"head_{key}")(rows)
    return layers.Identity(dtype="float32", name=key)(joined)


def _predict(channels, kernel, name, bias, kernel_initializer="glorot_uniform"):
    return layers.Conv2D(
        channels,
        kernel,
        padding="same",
        kernel_initializer=kernel_initializer,
        bias_initializer=initializers.Constant(bias),
        dtype="float32",
        name=name,
    )


def project(maps, channels):
    """Brings maps to a common number of channels, for heads that they share.

    Args:
      maps: list of [B, h, w, c].
      channels: wanted.

    Returns:
      list of [B, h, w, channels]: a 1x1 convolution, batch norm and ReLU6 each, of their own.
    """
    return [
        conv_block(x, channels, 1, f"head_{level}_project", activation="relu6") for level, x in enumerate(maps, 1)
    ]
