"""MobileNet V2 with Keras' layer names (Sandler et al., arXiv 1801.04381)."""

import keras
from keras import layers

from ssd_tf.models.layers import copy_weights
from ssd_tf.models.registry import register_backbone

# Output channels and stride of the inverted residuals; all but the first expand six times.
_V2_BLOCKS = (
    (16, 1),
    *((24, 2), (24, 1)),
    *((32, 2), (32, 1), (32, 1)),
    *((64, 2), (64, 1), (64, 1), (64, 1)),
    *((96, 1), (96, 1), (96, 1)),
    *((160, 2), (160, 1), (160, 1)),
    (320, 1),
)
_EXPANSION = 6
_TWIN_SHAPE = (224, 224, 3)


@register_backbone(
    "mobilenet_v2",
    taps=("block_6_expand_relu", "block_13_expand_relu", "out_relu"),
    preprocessing="tf",
)
def mobilenet_v2(image_shape, weights):
    """MobileNet V2 without its classifier; `image_shape` is (H, W, 3). Weights are keras.applications'."""
    image = keras.Input(image_shape)
    x = layers.Conv2D(32, 3, strides=2, padding="same", use_bias=False, name="Conv1")(image)
    x = _activate(_normalise(x, "bn_Conv1"), "Conv1_relu")
    for index, (filters, stride) in enumerate(_V2_BLOCKS):
        x = _inverted_residual(x, filters, stride, index)
    x = layers.Conv2D(1280, 1, use_bias=False, name="Conv_1")(x)
    x = _activate(_normalise(x, "Conv_1_bn"), "out_relu")
    model = keras.Model(image, x, name="mobilenet_v2")
    if weights is not None:
        twin = keras.applications.MobileNetV2(include_top=False, weights=weights, input_shape=_TWIN_SHAPE)
        copy_weights(twin, model)
    return model


def _inverted_residual(x, filters, stride, index):
    name = f"block_{index}_" if index else "expanded_conv_"
    shortcut = x
    if index:
        x = layers.Conv2D(x.shape[-1] * _EXPANSION, 1, use_bias=False, name=f"{name}expand")(x)
        x = _activate(_normalise(x, f"{name}expand_BN"), f"{name}expand_relu")
    x = layers.DepthwiseConv2D(3, strides=stride, padding="same", use_bias=False, name=f"{name}depthwise")(x)
    x = _activate(_normalise(x, f"{name}depthwise_BN"), f"{name}depthwise_relu")
    x = layers.Conv2D(filters, 1, use_bias=False, name=f"{name}project")(x)
    x = _normalise(x, f"{name}project_BN")
    return layers.Add(name=f"{name}add")([shortcut, x]) if stride == 1 and shortcut.shape[-1] == filters else x


def _normalise(x, name):
    return layers.BatchNormalization(epsilon=1e-3, momentum=0.999, name=name)(x)


def _activate(x, name):
    return layers.ReLU(6.0, name=name)(x)
