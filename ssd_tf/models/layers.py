"""Building blocks: preprocessing, L2 normalisation, convolution blocks, auxiliary layers."""

from dataclasses import dataclass

import keras
from keras import layers, ops

# (mean, scale) for RGB 0..255: x -> (x - mean) * scale; "caffe" also reverses the channels.
PREPROCESSING = {
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "tf": ((127.5, 127.5, 127.5), (1 / 127.5,) * 3),
    "torch": ((123.675, 116.28, 103.53), (1 / 58.395, 1 / 57.12, 1 / 57.375)),
    "caffe": ((123.68, 116.779, 103.939), (1.0, 1.0, 1.0)),
}
L2_SCALE = 20.0  # SSD paper, section 3.1
_L2_EPSILON = 1e-12


@keras.saving.register_keras_serializable("ssd_tf")
class Preprocess(layers.Layer):
    """Turns RGB 0..255 of any dtype into what a backbone was trained on; the arithmetic is float32.

    Args:
      mean: three numbers (R, G, B), subtracted.
      scale: three numbers, multiplied after.
      reverse: give the channels as BGR.
    """

    def __init__(self, mean, scale, reverse=False, **options):
        super().__init__(**options)
        self.mean, self.scale, self.reverse = tuple(mean), tuple(scale), reverse

    def call(self, images):
        pixels = (ops.cast(images, "float32") - ops.array(self.mean, "float32")) * ops.array(self.scale, "float32")
        return ops.cast(ops.flip(pixels, axis=-1) if self.reverse else pixels, self.compute_dtype)

    def compute_output_spec(self, images):
        return keras.KerasTensor(images.shape, self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), "mean": self.mean, "scale": self.scale, "reverse": self.reverse}


def make_preprocess(mode, mean=(), scale=1.0):
    """Returns the Preprocess layer of a mode: a key of PREPROCESSING, or "custom" with an RGB mean and a scale."""
    if mode == "custom":
        return Preprocess(mean, (scale,) * 3, name="preprocess")
    return Preprocess(*PREPROCESSING[mode], reverse=mode == "caffe", name="preprocess")


@keras.saving.register_keras_serializable("ssd_tf")
class L2Normalize(layers.Layer):
    """Scales the channels of each position to unit length, then each channel by a learned factor (ParseNet).

    Always float32: 512 squares overflow float16.
    """

    def __init__(self, **options):
        super().__init__(dtype="float32", **options)

    def build(self, input_shape):
        self.gamma = self.add_weight(
            name="gamma", shape=(input_shape[-1],), initializer=keras.initializers.Constant(L2_SCALE)
        )

    def call(self, features):
        length = ops.sqrt(ops.sum(ops.square(features), axis=-1, keepdims=True))
        return features / ops.maximum(length, _L2_EPSILON) * self.gamma

    def get_config(self):
        config = super().get_config()
        config.pop("dtype")
        return config


def conv_block(x, filters, kernel, name, stride=1, padding="same", norm=True, activation="relu"):
    """Convolution, batch norm where wanted, activation.

    Args:
      x: [B, H, W, C].
      filters: output channels; None for a depthwise convolution.
      kernel: side of the kernel.
      name: prefix of the layers' names.
      stride: step in both directions.
      padding: "same", "valid", or the number of zeros added on every side.
      norm: batch norm (then the convolution has no bias).
      activation: name of a Keras activation, or None.
    """
    if isinstance(padding, int):
        x = layers.ZeroPadding2D(padding, name=f"{name}_pad")(x) if padding else x
        padding = "valid"
    options = {"strides": stride, "padding": padding, "use_bias": not norm, "name": name}
    if filters is None:
        x = layers.DepthwiseConv2D(kernel, **options)(x)
    else:
        x = layers.Conv2D(filters, kernel, **options)(x)
    if norm:
        x = layers.BatchNormalization(epsilon=1e-3, name=f"{name}_bn")(x)
    return layers.Activation(activation, name=f"{name}_{activation}")(x) if activation else x


def convolve(x, filters, name, padding="same", kernel=1, stride=1):
    """A convolution without bias, as backbones have them before their batch norms.

    Args:
      x: [B, H, W, C].
      filters: output channels; None for a depthwise convolution.
      name: of the layer; one that pads is called name_pad.
      padding: "same", or "symmetric": half the kernel on every side, as torch does. They differ at strides alone.
      kernel: side of the kernel, odd.
      stride: step in both directions.
    """
    if padding == "symmetric" and stride > 1:
        x, padding = layers.ZeroPadding2D(kernel // 2, name=f"{name}_pad")(x), "valid"
    else:
        padding = "same"
    options = {"strides": stride, "padding": padding, "use_bias": False, "name": name}
    if filters is None:
        return layers.DepthwiseConv2D(kernel, **options)(x)
    return layers.Conv2D(filters, kernel, **options)(x)


def round_channels(channels):
    """Returns the multiple of 8 nearest to a number of channels, but no less than nine tenths of it."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


SAME = -1  # padding as TensorFlow's "same": at a stride, an even map gets its zeros at the bottom and right alone


@dataclass(frozen=True)
class Extra:
    """One auxiliary layer: a 1x1 convolution to `reduce` channels, then a `kernel` one to `channels`.

    `padding` is the number of zeros on every side, or SAME.
    """

    reduce: int
    channels: int
    kernel: int = 3
    stride: int = 2
    padding: int = 1


# Of the SSD paper's SSD300: 10, 5, 3 and 1 cells after a map of 19.
SSD300_EXTRAS = (
    Extra(256, 512),
    Extra(128, 256),
    Extra(128, 256, stride=1, padding=0),
    Extra(128, 256, stride=1, padding=0),
)


def next_extra(map_size, level):
    """Returns the Extra that follows a map by the standard rule, or None at 1 x 1.

    With s the shorter side: while s > 5 stride 2; while s >= 3 without padding (n -> n - 2); at 2 a padded
    4x4 kernel (n -> n - 1). 300 gives 19-10-5-3-1, 512 gives 32-16-8-4-2-1 (SSD paper, figure 2).

    Args:
      map_size: (rows, columns) of the map before.
      level: 0 for the first auxiliary layer (512 channels), more for the others (256).
    """
    channels = 512 if level == 0 else 256
    side = min(map_size)
    if side > 5:
        return Extra(channels // 2, channels)
    if side >= 3:
        return Extra(channels // 2, channels, stride=1, padding=0)
    return Extra(channels // 2, channels, kernel=4, stride=1) if side == 2 else None


def extra_size(map_size, extra):
    """Returns (rows, columns) after an Extra, for a map of `map_size`; below 1 where the kernel does not fit."""
    if extra.padding == SAME:
        return tuple(-(-cells // extra.stride) for cells in map_size)
    return tuple((cells + 2 * extra.padding - extra.kernel) // extra.stride + 1 for cells in map_size)


def add_extra(x, extra, name, kind="conv", norm="none", activation="auto"):
    """Adds one auxiliary layer and returns its map.

    Args:
      x: [B, H, W, C].
      extra: Extra.
      name: prefix of the layers' names.
      kind: "conv"; or "separable": depthwise and 1x1 instead of the full kernel, always with batch norm; or
        "inverted": the same without activation at its end (MobileNetV2's block).
      norm: "none" or "bn".
      activation: name of a Keras activation; "auto": relu6 after separable convolutions, else relu.
    """
    separable = kind != "conv"
    if activation == "auto":
        activation = "relu6" if separable else "relu"
    options = {"norm": norm == "bn" or separable, "activation": activation}
    x = conv_block(x, extra.reduce, 1, f"{name}_reduce", **options)
    padding = "same" if extra.padding == SAME else extra.padding
    spatial = {"stride": extra.stride, "padding": padding, **options}
    if not separable:
        return conv_block(x, extra.channels, extra.kernel, name, **spatial)
    x = conv_block(x, None, extra.kernel, f"{name}_depthwise", **spatial)
    if kind == "inverted":
        options["activation"] = None
    return conv_block(x, extra.channels, 1, name, **options)
