"""The detector: a plain functional model from images to class logits and box deltas."""

import keras

from ssd_tf.models import layers
from ssd_tf.models.registry import layer_group


def build_ssd(extractor, num_classes, num_anchors_per_cell, head="conv"):
    """Puts prediction heads on feature maps.

    Args:
      extractor: keras.Model, image to a list of maps.
      num_classes: C, without background.
      num_anchors_per_cell: one int a map.
      head: "conv" or "lite".

    Returns:
      keras.Model, uint8 [B, H, W, 3] RGB to {"class_logits": float32 [B, A, C + 1] (index 0 background),
      "box_deltas": float32 [B, A, 4] (ty, tx, th, tw)}; anchors in the order of boxes.anchors.
    """
    outputs = {}
    for key, values in (("class_logits", num_classes + 1), ("box_deltas", 4)):
        rows = []
        for level, (feature, count) in enumerate(zip(extractor.outputs, num_anchors_per_cell, strict=True), 1):
            name = f"head_{level}_{key}"
            x = layers.add_head(feature, count * values, name, head)
            num_rows = x.shape[1] * x.shape[2] * count
            rows.append(keras.layers.Reshape((num_rows, values), dtype="float32", name=f"{name}_rows")(x))
        joined = rows[0] if len(rows) == 1 else keras.layers.Concatenate(axis=1, dtype="float32")(rows)
        outputs[key] = keras.layers.Identity(dtype="float32", name=key)(joined)
    return keras.Model(extractor.inputs[0], outputs, name="ssd")


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
