"""The detector: a plain functional model from images to class logits and box deltas."""

import math

import keras

from ssd_tf.models import heads
from ssd_tf.models.registry import layer_group


def build_ssd(
    extractor, num_classes, num_anchors_per_cell, head="conv", head_channels=128, background=True, class_bias=0.0
):
    """Puts prediction heads on feature maps.

    Args:
      extractor: keras.Model, image to a list of maps.
      num_classes: C, without background.
      num_anchors_per_cell: one int a map.
      head: "conv", "lite" or "shared" (see heads.add_heads).
      head_channels: channels to which maps are brought where the head is shared.
      background: whether class_logits has a column 0 for background; heads of sigmoid losses have none.
      class_bias: what the biases of the class heads start from.

    Returns:
      keras.Model, uint8 [B, H, W, 3] RGB to {"class_logits": float32 [B, A, C + 1] (index 0 background; [B, A, C]
      without), "box_deltas": float32 [B, A, 4] (ty, tx, th, tw)}; anchors in the order of boxes.anchors.
    """
    maps = heads.project(extractor.outputs, head_channels) if head == "shared" else extractor.outputs
    columns = num_classes + int(background)
    outputs = {
        "class_logits": heads.add_heads(maps, num_anchors_per_cell, columns, "class_logits", head, class_bias),
        "box_deltas": heads.add_heads(maps, num_anchors_per_cell, 4, "box_deltas", head),
    }
    return keras.Model(extractor.inputs[0], outputs, name="ssd")


def count_multiply_adds(model):
    """Returns the multiply-adds of one image in convolutions and fully connected layers, those of shared layers
    as often as they are called."""
    total = 0
    for nodes in model._nodes_by_depth.values():
        for node in nodes:
            operation, positions = node.operation, math.prod(node.outputs[0].shape[1:-1])
            if isinstance(operation, keras.Model):
                total += count_multiply_adds(operation)
            elif isinstance(operation, keras.layers.Layer):
                kernels = [weight for weight in operation.weights if weight.name.endswith("kernel")]
                total += positions * sum(math.prod(kernel.shape) for kernel in kernels)
    return total


def all_layers(model):
    """Returns every layer of a model, those of nested models included."""
    return [layer for layer in model._flatten_layers(include_self=False) if not isinstance(layer, keras.Model)]


def set_batch_norm(model, momentum, freeze_backbone):
    """Sets how batch norms learn.

    Args:
      model: keras.Model of build_ssd.
      momentum: share of the old statistics kept at each step, for every batch norm that learns.
      freeze_backbone: keep statistics, scale and shift of the backbone's batch norms as they are.
    """
    for layer in all_layers(model):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = momentum
            layer.trainable = not (freeze_backbone and layer_group(layer) == "backbone")
