"""Two small networks called TinySSD: the paper's, of Fire modules, and the Dive into Deep Learning course's."""

import keras
from keras import layers

from ssd_tf.models.layers import Extra, conv_block
from ssd_tf.models.registry import register_backbone
from ssd_tf.models.twins import read_own

# (squeeze 1x1, expand 1x1, expand 3x3) of Fire1..Fire10 (the paper's table 1), and after which a pool follows.
_FIRES = (
    (15, 49, 53),
    (15, 54, 52),
    (29, 92, 94),
    (29, 90, 83),
    (44, 166, 161),
    (45, 155, 146),
    (49, 163, 171),
    (25, 29, 54),
    (37, 45, 56),
    (38, 41, 44),
)
_POOLED = (2, 4, 8, 9)
# Channels of the course's blocks: twice convolution, batch norm and ReLU, then a pool.
_COURSE_BLOCKS = (16, 32, 64, 128, 128, 128)
_COURSE_TAPS = ("block3_pool", "block4_pool", "block5_pool", "block6_pool", "global_pool")


@register_backbone(
    "tiny_ssd",
    taps=("fire4", "fire8", "fire9", "fire10"),
    preprocessing="tf",
    extras=(Extra(51, 46), Extra(55, 85)),
    no_imagenet="set model.weights=none",
)
def tiny_ssd(image_shape, weights):
    """TinySSD up to Fire10 (Wong et al., arXiv 1802.06488).

    Fire modules of SqueezeNet, thinned out layer by layer. The paper trains from ImageNet weights; for training
    from scratch one batch norm closes every Fire module. The other convolutions have none: on the large early maps
    it would cost more time than they do.

    Args:
      image_shape: (H, W, 3).
      weights: None, or a file of this network's weights.
    """
    image = keras.Input(image_shape)
    x = conv_block(image, 57, 3, "conv1", stride=2, padding="valid", norm=False)
    x = _pool(x, "pool1")
    for index, channels in enumerate(_FIRES, 1):
        x = _fire(x, channels, f"fire{index}")
        if index in _POOLED:
            x = _pool(x, f"pool{index + 1}")
    return _with_weights(keras.Model(image, x, name="tiny_ssd"), weights)


@register_backbone("tiny_ssd_d2l", _COURSE_TAPS, preprocessing="tf", no_imagenet="set model.weights=none")
def tiny_ssd_d2l(image_shape, weights):
    """TinySSD of the course Dive into Deep Learning: plain convolutions.

    Its anchors are those of the preset tiny256. The last map has one cell, whatever the size of the image is, so
    no auxiliary layers follow.

    Args:
      image_shape: (H, W, 3), 64 pixels or more.
      weights: None, or a file of this network's weights.
    """
    image = x = keras.Input(image_shape)
    for block, filters in enumerate(_COURSE_BLOCKS, 1):
        for conv in (1, 2):
            name = f"block{block}_conv{conv}"
            # The course's convolutions keep the bias that the batch norm makes idle.
            x = layers.Conv2D(filters, 3, padding="same", name=name)(x)
            x = layers.BatchNormalization(epsilon=1e-5, name=f"{name}_bn")(x)
            x = layers.Activation("relu", name=f"{name}_relu")(x)
        x = layers.MaxPooling2D(2, name=f"block{block}_pool")(x)
    x = layers.GlobalMaxPooling2D(keepdims=True, name=_COURSE_TAPS[-1])(x)
    return _with_weights(keras.Model(image, x, name="tiny_ssd_d2l"), weights)


def _with_weights(model, weights):
    """The model with the weights of a file, if one is given."""
    if weights is not None:
        read_own(model, weights)
    return model


def _fire(x, channels, name):
    squeeze, expand_1, expand_3 = channels
    x = conv_block(x, squeeze, 1, f"{name}_squeeze", norm=False)
    narrow = layers.Conv2D(expand_1, 1, use_bias=False, name=f"{name}_expand1")(x)
    wide = layers.Conv2D(expand_3, 3, padding="same", use_bias=False, name=f"{name}_expand3")(x)
    x = layers.Concatenate(name=f"{name}_expand")([narrow, wide])
    x = layers.BatchNormalization(epsilon=1e-3, name=f"{name}_bn")(x)
    return layers.Activation("relu", name=name)(x)


def _pool(x, name):
    """Caffe's 3x3 max pool of stride 2: an even map gets one row and column at its end, none at its start."""
    h, w = x.shape[1:3]
    if h % 2 == 0 or w % 2 == 0:
        # Zeros never win: the pool follows a ReLU.
        x = layers.ZeroPadding2D(((0, 1 - h % 2), (0, 1 - w % 2)), name=f"{name}_pad")(x)
    return layers.MaxPooling2D(3, 2, name=name)(x)
