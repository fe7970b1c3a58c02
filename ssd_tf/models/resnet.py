"""ResNet V1 and V2 of 50, 101 and 152 layers, as keras.applications builds them (He et al., arXiv 1512.03385 and
1603.05027).
"""

import keras
from keras import layers

from ssd_tf.models.layers import Extra
from ssd_tf.models.registry import Layout, register_backbone
from ssd_tf.models.strides import remove_strides
from ssd_tf.models.twins import application_model

_UNITS = {50: (4, 6), 101: (4, 23), 152: (8, 36)}  # of stages conv3 and conv4; conv2 and conv5 have three
_LAST = Extra(128, 256, stride=1, padding=0)
# 19, 10, 10, 5, 3 and 1 cells at 300 px; the sizes keep the two maps of 10 from having the same anchors.
_SEED_EXTRAS = (Extra(128, 256), _LAST, _LAST)
_SEED_SIZES = (0.15, 0.3, 0.4, 0.55, 0.71, 0.88, 1.05)
# NVIDIA's SSD300: conv5 left out, conv4 without its stride: 38, 19, 10, 5, 3 and 1 cells at 300 px.
_C4_EXTRAS = (Extra(256, 512), Extra(256, 512), Extra(128, 256), _LAST, _LAST)


def _register_v1(depth, conv3, conv4):
    """Registers ResNet V1; `conv3` and `conv4` are the names of the last units of these stages."""
    application = getattr(keras.applications, f"ResNet{depth}")

    def build(image_shape, weights, layout="default"):
        model = application_model(application, image_shape, weights)
        if layout == "c4":
            return remove_strides(model, ("conv4_block1_0_conv", "conv4_block1_1_conv"))
        return _with_halves(model, conv3, conv4) if layout == "seed" else model

    build.__doc__ = f"ResNet-{depth}, without its classifier."
    layouts = {
        "seed": Layout(("conv3_half", "conv4_half", "conv5_block3_out"), _SEED_EXTRAS, anchor_sizes=_SEED_SIZES),
        "c4": Layout((f"{conv4}_out",), _C4_EXTRAS),
    }
    taps = (f"{conv3}_out", f"{conv4}_out", "conv5_block3_out")
    register_backbone(f"resnet{depth}", taps, "caffe", layouts=layouts)(build)


def _with_halves(model, conv3, conv4):
    """ResNet V1 with the maps of stages conv3 and conv4 as TF-slim has them.

    There the last unit of a stage has the stride, here the two 1x1 convolutions that follow it: both leave every
    second row and column out, so the weights are the same and so are all later maps.
    """
    outputs = [
        layers.MaxPooling2D(1, 2, padding="same", name=f"{unit[:5]}_half")(model.get_layer(f"{unit}_out").output)
        for unit in (conv3, conv4)
    ]
    return keras.Model(model.inputs[0], [*outputs, model.outputs[0]], name=model.name)


def _register_v2(depth, conv3, conv4):
    """Registers ResNet V2, tapped where its sums are normalised and activated."""
    application = getattr(keras.applications, f"ResNet{depth}V2")

    def build(image_shape, weights):
        return application_model(application, image_shape, weights)

    build.__doc__ = f"ResNet-{depth} V2, without its classifier."
    seed = tuple(f"{stage}_block1_preact_relu" for stage in ("conv4", "conv5"))
    layouts = {"seed": Layout((*seed, "post_relu"), _SEED_EXTRAS, anchor_sizes=_SEED_SIZES)}
    taps = (f"{conv3}_preact_relu", f"{conv4}_preact_relu", "post_relu")
    register_backbone(f"resnet{depth}_v2", taps, "tf", layouts=layouts)(build)


for _depth, (_conv3, _conv4) in _UNITS.items():
    for _register in (_register_v1, _register_v2):
        _register(_depth, f"conv3_block{_conv3}", f"conv4_block{_conv4}")
