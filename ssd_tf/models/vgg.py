"""VGG16 as SSD uses it: fully convolutional, fc6 and fc7 reduced, pools that round up (SSD paper, section 3.1)."""

import keras
from keras import layers

from ssd_tf.models.layers import SSD300_EXTRAS, L2Normalize
from ssd_tf.models.registry import Layout, register_backbone
from ssd_tf.models.twins import fill

_BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
_TAPS = ("neck_block4_conv3", "fc7")


@register_backbone("vgg16", taps=_TAPS, preprocessing="caffe", layouts={"seed": Layout(_TAPS, SSD300_EXTRAS)})
def vgg16(image_shape, weights, tap_norm="l2"):
    """VGG16 up to fc7, its fully connected layers as convolutions; `image_shape` is (H, W, 3).

    The layers have Keras' names. conv4_3 is tapped behind an L2 normalisation, or behind a batch norm where
    `tap_norm` is "bn". Weights with Keras' classifier ("imagenet" has it) also fill fc6 and fc7, decimated;
    without it these two start anew. A file of this network's own weights fills all, the normalisation too.
    """
    image = x = keras.Input(image_shape)
    for block, (filters, num_convs) in enumerate(_BLOCKS, 1):
        for conv in range(1, num_convs + 1):
            name = f"block{block}_conv{conv}"
            x = layers.Conv2D(filters, 3, padding="same", activation="relu", name=name)(x)
            if name == "block4_conv3":
                norm = L2Normalize if tap_norm == "l2" else layers.BatchNormalization
                normalised = norm(name=f"neck_{name}")(x)
        # "same" rounds up as caffe does (75 -> 38); pool5 keeps its map so that fc6 can be dilated instead.
        pool, stride = (3, 1) if block == 5 else (2, 2)
        x = layers.MaxPooling2D(pool, stride, padding="same", name=f"block{block}_pool")(x)
    x = layers.Conv2D(1024, 3, dilation_rate=6, padding="same", activation="relu", name="fc6")(x)
    x = layers.Conv2D(1024, 1, activation="relu", name="fc7")(x)
    model = keras.Model(image, [normalised, x], name="vgg16")
    if weights is not None:
        _load(model, weights)
    return model


def _load(model, weights):
    twin = fill(model, keras.applications.VGG16, weights, classifier=True)
    if twin is not None and "fc1" in [layer.name for layer in twin.layers]:
        kernel, bias = twin.get_layer("fc1").get_weights()
        model.get_layer("fc6").set_weights(decimate(kernel.reshape(7, 7, 512, 4096), bias, (3, 3, 1, 4)))
        kernel, bias = twin.get_layer("fc2").get_weights()
        model.get_layer("fc7").set_weights(decimate(kernel[None, None], bias, (1, 1, 4, 4)))


def decimate(kernel, bias, steps):
    """Keeps every n-th entry of a fully connected layer written as a convolution (DeepLab's "a trous" trick).

    Args:
      kernel: float32 [h, w, in, out].
      bias: float32 [out].
      steps: four ints, one an axis of the kernel.

    Returns:
      [kernel, bias] thinned out.
    """
    h, w, inputs, outputs = steps
    return [kernel[::h, ::w, ::inputs, ::outputs], bias[::outputs]]
