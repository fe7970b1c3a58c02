"""Importing the package registers the backbones."""

from ssd_tf.models import mobilenet, tiny, vgg

__all__ = ["mobilenet", "tiny", "vgg"]
