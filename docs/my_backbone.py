"""A backbone of one's own: ssd-train --plugin=docs/my_backbone.py --set model.backbone=my_net ..."""

import keras
from keras import layers

import ssd_tf


@ssd_tf.register_backbone(
    "my_net", taps=("stage_3", "stage_4", "stage_5"), preprocessing="tf", no_imagenet="set model.weights=none"
)
def my_net(image_shape, weights):
    """Five separable convolutions of stride 2; `image_shape` is (H, W, 3), `weights` None or a file."""
    image = x = keras.Input(image_shape)
    for stage, filters in enumerate((32, 64, 128, 256, 512), 1):
        x = layers.SeparableConv2D(filters, 3, 2, padding="same", use_bias=False, name=f"stage_{stage}_conv")(x)
        x = layers.BatchNormalization(name=f"stage_{stage}_bn")(x)
        x = layers.ReLU(name=f"stage_{stage}")(x)
    model = keras.Model(image, x)
    if weights is not None:
        model.load_weights(weights)
    return model
