"""MobileNet V3 Large with Keras' names for every layer that has weights (arXiv 1905.02244, table 1)."""

from dataclasses import dataclass

import keras
from keras import layers

from ssd_tf.models.layers import convolve, round_channels
from ssd_tf.models.registry import register_backbone
from ssd_tf.models.twins import fill, read_own


@dataclass(frozen=True)
class _Block:
    """An inverted residual: channels that it takes, expands to and gives."""

    taken: int
    expanded: int
    given: int
    kernel: int = 3
    stride: int = 1
    squeeze: bool = False
    activation: str = "hard_swish"


_BLOCKS = (
    _Block(16, 16, 16, activation="relu"),
    _Block(16, 64, 24, stride=2, activation="relu"),
    _Block(24, 72, 24, activation="relu"),
    _Block(24, 72, 40, 5, 2, squeeze=True, activation="relu"),
    *(_Block(40, 120, 40, 5, squeeze=True, activation="relu"),) * 2,
    _Block(40, 240, 80, stride=2),
    _Block(80, 200, 80),
    *(_Block(80, 184, 80),) * 2,
    _Block(80, 480, 112, squeeze=True),
    _Block(112, 672, 112, squeeze=True),
    _Block(112, 672, 160, 5, 2, squeeze=True),
    *(_Block(160, 960, 160, 5, squeeze=True),) * 2,
)
_TAIL = 12  # the first block of the last stage
_SQUEEZE = 4


# The widened maps before a stride, as SSDLite has them (MobileNetV2 paper, section 6.2).
@register_backbone(
    "mobilenet_v3_large",
    taps=("expanded_conv_6_expand_activation", "expanded_conv_12_expand_activation", "conv_1_activation"),
    preprocessing="tf",
)
def mobilenet_v3_large(image_shape, weights, width=1.0, padding="same", reduced_tail=False):
    """MobileNet V3 Large, without its classifier; `image_shape` is (H, W, 3), the weights are keras.applications'.

    `reduced_tail` halves the channels of the last stage, but for the expansion of its first block (torchvision);
    its weights can only be a file of such a network.
    """
    image = keras.Input(image_shape)
    x = convolve(image, 16, "conv", padding, kernel=3, stride=2)
    x = _activate(_normalise(x, "conv_bn"), "hard_swish", "conv_activation")
    for index, block in enumerate(_BLOCKS):
        given = block.given // 2 if reduced_tail and index >= _TAIL else block.given
        x = _inverted_residual(x, block, round_channels(given * width), index, padding)
    x = convolve(x, round_channels(6 * x.shape[-1]), "conv_1")
    x = _activate(_normalise(x, "conv_1_bn"), "hard_swish", "conv_1_activation")
    model = keras.Model(image, x, name="mobilenet_v3_large")
    if reduced_tail and weights is not None:
        read_own(model, weights)
    elif weights is not None:
        # Preprocessing would be a layer without weights: files of networks with and without it fit.
        fill(model, keras.applications.MobileNetV3Large, weights, alpha=width, include_preprocessing=False)
    return model


def _inverted_residual(x, block, given, index, padding):
    name = f"expanded_conv_{index}_" if index else "expanded_conv_"
    shortcut, expanded = x, round_channels(x.shape[-1] * block.expanded / block.taken)
    if index:
        x = convolve(x, expanded, f"{name}expand")
        x = _activate(_normalise(x, f"{name}expand_bn"), block.activation, f"{name}expand_activation")
    x = convolve(x, None, f"{name}depthwise", padding, block.kernel, block.stride)
    x = _activate(_normalise(x, f"{name}depthwise_bn"), block.activation, f"{name}depthwise_activation")
    if block.squeeze:
        x = _squeeze_and_excite(x, f"{name}squeeze_excite_")
    x = _normalise(convolve(x, given, f"{name}project"), f"{name}project_bn")
    keeps_shape = block.stride == 1 and shortcut.shape[-1] == given
    return layers.Add(name=f"{name}add")([shortcut, x]) if keeps_shape else x


def _squeeze_and_excite(x, name):
    """Weighs the channels by what they are on average over the map (paper, section 5.3)."""
    gate = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}avg_pool")(x)
    gate = layers.Conv2D(round_channels(x.shape[-1] / _SQUEEZE), 1, name=f"{name}conv")(gate)
    gate = layers.Conv2D(x.shape[-1], 1, name=f"{name}conv_1")(_activate(gate, "relu", f"{name}relu"))
    return layers.Multiply(name=f"{name}mul")([x, _activate(gate, "hard_sigmoid", f"{name}gate")])


def _normalise(x, name):
    return layers.BatchNormalization(epsilon=1e-3, name=name)(x)


def _activate(x, kind, name):
    return layers.Activation(kind, name=name)(x)
