"""Networks of keras.applications that are registered with the layers to tap; any other needs model.taps.

Taps are the widened maps before a convolution with a stride, as SSDLite has them (MobileNetV2 paper, section 6.2).
"""

import keras

from ssd_tf.models.registry import register_backbone
from ssd_tf.models.twins import application_model


@register_backbone(
    "efficientnet_b0", taps=("block4a_expand_activation", "block6a_expand_activation", "top_activation")
)
def efficientnet_b0(image_shape, weights):
    """EfficientNet-B0, without its classifier (Tan and Le, arXiv 1905.11946); it normalises its input itself."""
    return application_model(keras.applications.EfficientNetB0, image_shape, weights)
