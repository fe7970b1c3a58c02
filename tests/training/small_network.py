"""A backbone of a few thousand weights, for tests alone."""

import keras

from ssd_tf.models import registry


def small_network(image_shape, weights):
    """Maps of strides 4, 8 and 16; `image_shape` is (H, W, 3)."""
    image = x = keras.Input(image_shape)
    for index, filters in enumerate((8, 12, 16, 16)):
        x = keras.layers.Conv2D(filters, 3, strides=2, padding="same", use_bias=False, name=f"conv{index}")(x)
        x = keras.layers.BatchNormalization(name=f"norm{index}")(x)
        x = keras.layers.Activation("relu", name=f"relu{index}")(x)
    return keras.Model(image, x)


def register():
    """Registers it as "small", without auxiliary layers."""
    taps = ("relu1", "relu2", "relu3")
    registry.register_backbone("small", taps=taps, preprocessing="tf", extras=())(small_network)
