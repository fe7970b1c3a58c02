"""Inception V4, and Inception-ResNet V2 of keras.applications (Szegedy et al., arXiv 1602.07261).

The layers of Inception V4 are named after slim's, the path written with underscores: the output of a module is
Mixed_5e, a convolution in it Mixed_5e_Branch_1_Conv2d_0b_3x3. Inception-ResNet V2 has Keras' names (mixed_5b,
block35_1_conv, conv_7b), and where Keras only counts its layers up, such as these: block35_1_Branch_0_Conv2d_1x1.
"""

import re

import keras
from keras import layers

from ssd_tf.models.layers import Extra, conv_block
from ssd_tf.models.registry import Layout, register_backbone
from ssd_tf.models.twins import application_model, read_own

# A convolution is (name with its kernel, filters), padded to keep the map, or (name, filters, stride), not padded.
STEM = (("1a_3x3", 32, 2), ("2a_3x3", 32, 1), ("2b_3x3", 64))
# A module is a tuple of branches, a branch a tuple of steps: convolutions, pools (their names alone), and as a
# last step a list of two convolutions side by side.
_A = (
    (("0a_1x1", 96),),
    (("0a_1x1", 64), ("0b_3x3", 96)),
    (("0a_1x1", 64), ("0b_3x3", 96), ("0c_3x3", 96)),
    ("AvgPool_0a_3x3", ("0b_1x1", 96)),
)
_B = (
    (("0a_1x1", 384),),
    (("0a_1x1", 192), ("0b_1x7", 224), ("0c_7x1", 256)),
    (("0a_1x1", 192), ("0b_7x1", 192), ("0c_1x7", 224), ("0d_7x1", 224), ("0e_1x7", 256)),
    ("AvgPool_0a_3x3", ("0b_1x1", 128)),
)
_C = (
    (("0a_1x1", 256),),
    (("0a_1x1", 384), [("0b_1x3", 256), ("0c_3x1", 256)]),
    (("0a_1x1", 384), ("0b_3x1", 448), ("0c_1x3", 512), [("0d_1x3", 256), ("0e_3x1", 256)]),
    ("AvgPool_0a_3x3", ("0b_1x1", 256)),
)
MODULES = {
    "Mixed_3a": (("MaxPool_0a_3x3",), (("0a_3x3", 96, 2),)),
    "Mixed_4a": (
        (("0a_1x1", 64), ("1a_3x3", 96, 1)),
        (("0a_1x1", 64), ("0b_1x7", 64), ("0c_7x1", 64), ("1a_3x3", 96, 1)),
    ),
    "Mixed_5a": ((("1a_3x3", 192, 2),), ("MaxPool_1a_3x3",)),
    **{f"Mixed_5{letter}": _A for letter in "bcde"},
    "Mixed_6a": (
        (("1a_3x3", 384, 2),),
        (("0a_1x1", 192), ("0b_3x3", 224), ("1a_3x3", 256, 2)),
        ("MaxPool_1a_3x3",),
    ),
    **{f"Mixed_6{letter}": _B for letter in "bcdefgh"},
    "Mixed_7a": (
        (("0a_1x1", 192), ("1a_3x3", 192, 2)),
        (("0a_1x1", 256), ("0b_1x7", 256), ("0c_7x1", 320), ("1a_3x3", 320, 2)),
        ("MaxPool_1a_3x3",),
    ),
    **{f"Mixed_7{letter}": _C for letter in "bcd"},
}
# The convolutions of Inception-ResNet V2 that Keras counts up, in its order: those of the stem, then those of each
# module, branch by branch.
RESIDUAL_STEM = ("1a_3x3", "2a_3x3", "2b_3x3", "3b_1x1", "4a_3x3")
_BLOCK_35 = (("1x1",), ("0a_1x1", "0b_3x3"), ("0a_1x1", "0b_3x3", "0c_3x3"))
_BLOCK_17 = (("1x1",), ("0a_1x1", "0b_1x7", "0c_7x1"))
_BLOCK_8 = (("1x1",), ("0a_1x1", "0b_1x3", "0c_3x1"))
RESIDUAL_MODULES = {
    "mixed_5b": (("1x1",), ("0a_1x1", "0b_5x5"), ("0a_1x1", "0b_3x3", "0c_3x3"), ("0b_1x1",)),
    **{f"block35_{index}": _BLOCK_35 for index in range(1, 11)},
    "mixed_6a": (("1a_3x3",), ("0a_1x1", "0b_3x3", "1a_3x3")),
    **{f"block17_{index}": _BLOCK_17 for index in range(1, 21)},
    "mixed_7a": (("0a_1x1", "1a_3x3"), ("0a_1x1", "1a_3x3"), ("0a_1x1", "0b_3x3", "1a_3x3")),
    **{f"block8_{index}": _BLOCK_8 for index in range(1, 11)},
}
# 8, 4 and 2 cells at 300 px.
_SEED_EXTRAS = (Extra(128, 256), Extra(128, 256, stride=1, padding=0))


@register_backbone(
    "inception_v4",
    taps=("Mixed_5e", "Mixed_6h", "Mixed_7d"),
    preprocessing="tf",
    layouts={"seed": Layout(("Mixed_6d", "Mixed_6h", "Mixed_7b", "Mixed_7d"), _SEED_EXTRAS)},
    no_imagenet="save model.safetensors of timm's inception_v4.tf_in1k and set "
    "model.weights=/path/model.safetensors, or set model.weights=none",
)
def inception_v4(image_shape, weights):
    """Inception V4 without its classifier (arXiv 1602.07261, figures 3 to 9).

    Args:
      image_shape: (H, W, 3).
      weights: None, or a Keras file of this network's weights; timm's are read by pretrained.
    """
    image = x = keras.Input(image_shape)
    for convolution in STEM:
        x = _convolve(x, convolution, "")
    for name, branches in MODULES.items():
        ends = [
            end for index, steps in enumerate(branches) for end in _branch(x, steps, f"{name}_Branch_{index}_")
        ]
        x = layers.Concatenate(name=name)(ends)
    model = keras.Model(image, x, name="inception_v4")
    if weights is not None:
        read_own(model, weights)
    return model


def _branch(x, steps, prefix):
    """The ends of a branch: two where its last step is a pair."""
    for step in steps:
        if isinstance(step, list):
            return [_convolve(x, convolution, prefix) for convolution in step]
        x = _pool(x, f"{prefix}{step}") if isinstance(step, str) else _convolve(x, step, prefix)
    return [x]


def _convolve(x, convolution, prefix):
    name, filters, *stride = convolution
    kernel = tuple(int(side) for side in name.partition("_")[2].split("x"))
    options = {"stride": stride[0], "padding": "valid"} if stride else {}
    return conv_block(x, filters, kernel, f"{prefix}Conv2d_{name}", **options)


def _pool(x, name):
    if "MaxPool" in name:
        return layers.MaxPooling2D(3, 2, name=name)(x)
    return layers.AveragePooling2D(3, 1, padding="same", name=name)(x)  # padding is not counted in the mean


@register_backbone(
    "inception_resnet_v2",
    taps=("block35_10_ac", "block17_20_ac", "conv_7b_ac"),
    preprocessing="tf",
    layouts={
        # The stem's layers are numbered by Keras: Conv2d_4a_3x3 and MaxPool_5a_3x3 of slim by their indices.
        "seed": Layout(
            (16, 17, "mixed_6a", "mixed_7a"),
            _SEED_EXTRAS,
            extras_after="conv_7b_ac",
            # The stem's 71 cells come first: the sizes of the default layout follow one that is half as large.
            anchor_sizes=(0.05, 0.1, 0.2, 0.37, 0.54, 0.71, 0.88),
        )
    },
)
def inception_resnet_v2(image_shape, weights):
    """Inception-ResNet V2 without its classifier; `image_shape` is (H, W, 3). Weights are keras.applications'."""
    model = application_model(keras.applications.InceptionResNetV2, image_shape, weights)
    names = [f"Conv2d_{name}" for name in RESIDUAL_STEM]
    for module, branches in RESIDUAL_MODULES.items():
        for index, steps in enumerate(branches):
            names += [f"{module}_Branch_{index}_Conv2d_{name}" for name in steps]
    for kind, ending in (("conv2d", ""), ("batch_normalization", "_bn"), ("activation", "_relu")):
        for layer, name in zip(_counted_layers(model, kind), names, strict=True):
            layer.name = f"{name}{ending}"
    return model


def _counted_layers(model, kind):
    """The layers that Keras names by kind and count, in the order in which it made them."""
    matches = [(re.fullmatch(rf"{kind}_?(\d*)", layer.name), layer) for layer in model.layers]
    counts = {int(match[1] or 0): layer for match, layer in matches if match}
    return [counts[count] for count in sorted(counts)]
