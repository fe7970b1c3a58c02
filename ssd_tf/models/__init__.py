"""Importing the package registers the backbones."""

from ssd_tf.models import applications, inception, mobilenet, mobilenet_v3, resnet, tiny, vgg

__all__ = ["applications", "inception", "mobilenet", "mobilenet_v3", "resnet", "tiny", "vgg"]
