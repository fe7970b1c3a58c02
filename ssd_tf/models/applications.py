"""Networks of keras.applications that are registered with the layers to tap; any other needs model.taps.

Taps are the widened maps before a convolution with a stride, as SSDLite has them (MobileNetV2 paper, section 6.2).
"""

import keras

from ssd_tf.models.registry import register_backbone
from ssd_tf.models.twins import application_model


# Indices, as Keras counts up the names of activations: those of expanded_conv_6, expanded_conv_12 and conv_1.
@register_backbone("mobilenet_v3_large", taps=(75, 140, -1), preprocessing="tf")
def mobilenet_v3_large(image_shape, weights):
    """MobileNet V3 Large, without its classifier (Howard et al., arXiv 1905.02244)."""
    options = {"include_preprocessing": False}
    return application_model(keras.applications.MobileNetV3Large, image_shape, weights, **options)


@register_backbone(
    "efficientnet_b0", taps=("block4a_expand_activation", "block6a_expand_activation", "top_activation")
)
def efficientnet_b0(image_shape, weights):
    """EfficientNet-B0, without its classifier (Tan and Le, arXiv 1905.11946); it normalises its input itself."""
    return application_model(keras.applications.EfficientNetB0, image_shape, weights)
