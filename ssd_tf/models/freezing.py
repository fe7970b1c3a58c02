"""Which layers of a network do not learn."""

from ssd_tf.config import GROUPS
from ssd_tf.errors import ConfigError, shown, suggest
from ssd_tf.models.detector import all_layers
from ssd_tf.models.registry import layer_group


def freeze(model, groups, last=""):
    """Keeps layers as they are: their weights, and the statistics of their batch norms.

    Args:
      model: keras.Model of models.detector, or its feature extractor, which has no heads.
      groups: names of groups of layers (models.registry.layer_group).
      last: name of a layer to freeze with all that it depends on, or "".

    Returns:
      list of the layers that were frozen.

    Raises:
      ConfigError: there is no such layer, or the network has no layers of a group.
    """
    layers = all_layers(model)
    frozen = [layer for layer in layers if layer_group(layer) in groups]
    for group in groups:
        if group != "heads" and not any(layer_group(layer) == group for layer in layers):
            there = ", ".join(name for name in GROUPS if any(layer_group(layer) == name for layer in layers))
            raise ConfigError(f"train.freeze: this network has no layers of the group {group} (it has: {there})")
    if last:
        before = _up_to(model, last)
        if before is None:
            near = suggest(last, [layer.name for layer in layers])
            raise ConfigError(f"train.freeze_to: there is no layer {shown(last)!r}{near}")
        frozen += before
    for layer in frozen:
        layer.trainable = False
    return frozen


def _up_to(model, name):
    """The layer called `name` and those that it depends on, nested models opened; None where there is none."""
    for layer in model.layers:
        inner = [layer] if layer.name == name else None
        if inner is None and hasattr(layer, "layers"):
            inner = _up_to(layer, name)
        if inner is not None:
            return [*inner, *_opened(_ancestors(layer))]
    return None


def _ancestors(layer):
    found, waiting = [], [layer]
    while waiting:
        nodes = [parent for node in waiting.pop()._inbound_nodes for parent in node.parent_nodes]
        new = {id(node.operation): node.operation for node in nodes if node.operation not in found}
        found += new.values()
        waiting += new.values()
    return found


def _opened(layers):
    return [part for layer in layers for part in (all_layers(layer) if hasattr(layer, "layers") else [layer])]
