"""MobileNet V1 and V2 with Keras' layer names (arXiv 1704.04861 and 1801.04381).

Keras' own MobileNet V1 pads (0, 1) before every stride, which makes an odd map one cell smaller than "same" does
(75 gives 37, not 38); on even maps the two are equal.
"""

import keras
from keras import layers

from ssd_tf.models.layers import SSD300_EXTRAS, convolve, round_channels
from ssd_tf.models.registry import Layout, register_backbone
from ssd_tf.models.twins import fill

# Output channels and stride of V1's separable blocks 1 to 13.
_V1_BLOCKS = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1)),
    *((512, 2), (512, 1), (512, 1), (512, 1), (512, 1), (512, 1)),
    *((1024, 2), (1024, 1)),
)
# Output channels and stride of V2's inverted residuals; all but the first expand six times.
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


@register_backbone(
    "mobilenet_v1",
    taps=("conv_pw_5_relu", "conv_pw_11_relu", "conv_pw_13_relu"),
    preprocessing="tf",
    layouts={"seed": Layout(("conv_pw_5_relu", "conv_pw_11_relu"), SSD300_EXTRAS)},
)
def mobilenet_v1(image_shape, weights, width=1.0, padding="same", activation="auto"):
    """MobileNet V1, without its classifier; `image_shape` is (H, W, 3), the weights are keras.applications'."""
    image = keras.Input(image_shape)
    x = convolve(image, int(32 * width), "conv1", padding, kernel=3, stride=2)
    x = _activate(_normalise(x, "conv1_bn"), "conv1_relu", activation)
    for index, (filters, stride) in enumerate(_V1_BLOCKS, 1):
        name = f"conv_dw_{index}"
        x = convolve(x, None, name, padding, kernel=3, stride=stride)
        x = _activate(_normalise(x, f"{name}_bn"), f"{name}_relu", activation)
        name = f"conv_pw_{index}"
        x = convolve(x, int(filters * width), name)
        x = _activate(_normalise(x, f"{name}_bn"), f"{name}_relu", activation)
    model = keras.Model(image, x, name="mobilenet_v1")
    if weights is not None:
        fill(model, keras.applications.MobileNet, weights, alpha=width)
    return model


@register_backbone(
    "mobilenet_v2",
    taps=("block_6_expand_relu", "block_13_expand_relu", "out_relu"),
    preprocessing="tf",
    layouts={"seed": Layout(("block_5_add", "block_12_add"), SSD300_EXTRAS)},
)
def mobilenet_v2(image_shape, weights, width=1.0, padding="same", activation="auto"):
    """MobileNet V2, without its classifier; `image_shape` is (H, W, 3), the weights are keras.applications'."""
    image = keras.Input(image_shape)
    x = convolve(image, round_channels(32 * width), "Conv1", padding, kernel=3, stride=2)
    x = _activate(_normalise(x, "bn_Conv1"), "Conv1_relu", activation)
    for index, (filters, stride) in enumerate(_V2_BLOCKS):
        x = _inverted_residual(x, round_channels(filters * width), stride, index, padding, activation)
    x = convolve(x, round_channels(1280 * max(width, 1)), "Conv_1")
    x = _activate(_normalise(x, "Conv_1_bn"), "out_relu", activation)
    model = keras.Model(image, x, name="mobilenet_v2")
    if weights is not None:
        fill(model, keras.applications.MobileNetV2, weights, alpha=width)
    return model


def _inverted_residual(x, filters, stride, index, padding, activation):
    name = f"block_{index}_" if index else "expanded_conv_"
    shortcut = x
    if index:
        x = convolve(x, x.shape[-1] * _EXPANSION, f"{name}expand")
        x = _activate(_normalise(x, f"{name}expand_BN"), f"{name}expand_relu", activation)
    x = convolve(x, None, f"{name}depthwise", padding, kernel=3, stride=stride)
    x = _activate(_normalise(x, f"{name}depthwise_BN"), f"{name}depthwise_relu", activation)
    x = _normalise(convolve(x, filters, f"{name}project"), f"{name}project_BN")
    return layers.Add(name=f"{name}add")([shortcut, x]) if stride == 1 and shortcut.shape[-1] == filters else x


def _normalise(x, name):
    return layers.BatchNormalization(epsilon=1e-3, name=name)(x)


def _activate(x, name, activation):
    return layers.ReLU(None if activation == "relu" else 6.0, name=name)(x)
