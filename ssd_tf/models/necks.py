"""Necks: what stands between the backbone's taps and the heads."""

from keras import layers, ops

from ssd_tf.models.layers import conv_block


def add_fpn(maps, channels):
    """Adds a light feature pyramid: coarse maps are added to finer ones, top down, then smoothed.

    Feature Pyramid Networks (arXiv 1612.03144) with the separable convolutions of the Object Detection API's
    SSD-MobileNet-FPNLite: 1x1 laterals, nearest-neighbour enlargement, 3x3 smoothing, batch norm throughout.

    Args:
      maps: list of [B, h, w, c], fine to coarse.
      channels: of every map returned.

    Returns:
      list of [B, h, w, channels] with the sizes of `maps`.
    """
    merged = []
    for level, feature in reversed(list(enumerate(maps, 1))):
        x = conv_block(feature, channels, 1, f"neck_{level}_lateral", activation=None)
        if merged:
            above = ops.image.resize(merged[-1], x.shape[1:3], interpolation="nearest")
            x = layers.Add(name=f"neck_{level}_add")([x, above])
        merged.append(x)
    return [_smooth(x, channels, f"neck_{level}") for level, x in enumerate(reversed(merged), 1)]


def _smooth(x, channels, name):
    x = conv_block(x, None, 3, f"{name}_depthwise", activation="relu6")
    return conv_block(x, channels, 1, name, activation="relu6")
