"""The detector: a plain functional model from images to class logits and box deltas."""

import math

import keras

from ssd_tf.config import ModelConfig
from ssd_tf.models import heads
from ssd_tf.models.registry import layer_group

_DEFAULTS = ModelConfig()


def build_ssd(extractor, num_classes, num_anchors_per_cell, settings=_DEFAULTS, background=True, class_bias=0.0):
    """Puts prediction heads on feature maps.

    Args:
      extractor: keras.Model, image to a list of maps.
      num_classes: C, without background.
      num_anchors_per_cell: one int a map.
      settings: config.ModelConfig; of it heads, last_head, neck_channels (to which maps are brought where heads
        are shared), activation, background_columns and norm_epsilon.
      background: whether class_logits has a column 0 for background; heads of sigmoid losses have none.
      class_bias: what the biases of the class heads start from.

    Returns:
      keras.Model, uint8 [B, H, W, 3] RGB to {"class_logits": float32 [B, A, C + 1] (index 0 background; [B, A, C]
      without), "box_deltas": float32 [B, A, 4] (ty, tx, th, tw)}; anchors in the order of boxes.anchors.
    """
    shared = settings.heads == "shared"
    maps = heads.project(extractor.outputs, settings.neck_channels) if shared else extractor.outputs
    counts, columns = num_anchors_per_cell, num_classes + (settings.background_columns if background else 0)
    activation = "relu6" if settings.activation == "auto" else settings.activation
    style = {"kind": settings.heads, "activation": activation, "last": settings.last_head}
    logits = heads.add_heads(maps, counts, columns, "class_logits", bias=class_bias, **style)
    if background and settings.background_columns > 1:
        logits = heads.MergeBackground(settings.background_columns, name="head_merge_background")(logits)
    outputs = {"class_logits": logits, "box_deltas": heads.add_heads(maps, counts, 4, "box_deltas", **style)}
    model = keras.Model(extractor.inputs[0], outputs, name="ssd")
    if settings.norm_epsilon:
        for layer in batch_norms(model):
            layer.epsilon = settings.norm_epsilon
    return model


def batch_norms(model):
    """Returns the batch norms of a model, those of nested models included."""
    return [layer for layer in all_layers(model) if isinstance(layer, keras.layers.BatchNormalization)]


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
    for layer in batch_norms(model):
        layer.momentum = momentum
        layer.trainable = not (freeze_backbone and layer_group(layer) == "backbone")
