"""Which layers of a network do not learn."""

import re

import keras

from ssd_tf.config import GROUPS
from ssd_tf.errors import ConfigError, shown, suggest
from ssd_tf.models import lookup
from ssd_tf.models.detector import all_layers
from ssd_tf.models.registry import layer_group

_BACKBONE = "backbone"  # what models.extractor calls the model inside


def freeze(model, groups, last=""):
    """Keeps layers as they are: their weights, and the statistics of their batch norms.

    Args:
      model: keras.Model of models.detector, or its feature extractor, which has no heads.
      groups: names of groups of layers (models.registry.layer_group).
      last: a layer to freeze with all that it depends on, "" for none: a name, or where Keras counts names up the
        index in the backbone (models.lookup).

    Returns:
      list of the layers that were frozen.

    Raises:
      ConfigError: there is no such layer, the network has no layers of a group, or nothing is left to learn.
    """
    for group in groups:
        _check_group(model, group, "train.freeze")
    frozen = [layer for layer in all_layers(model) if layer_group(layer) in groups]
    frozen += _up_to(*_find(model, last)) if last else []
    for layer in frozen:
        layer.trainable = False
    if "heads" in groups and not model.trainable_weights:
        also = f" and train.freeze_to={shown(last)}" if last else ""
        raise ConfigError(f"nothing of this network would learn: train.freeze={','.join(groups)}{also}")
    return frozen


def check(extractor, settings):
    """Finds out before there are weights and data whether a training can freeze what it is to freeze.

    Args:
      extractor: keras.Model of models.extractor; its layers are frozen by this.
      settings: config.TrainConfig.

    Raises:
      ConfigError: as `freeze`, or the network has no layers of a group with a rate of its own.
    """
    for group in GROUPS:
        if getattr(settings, f"{group}_rate") != 1:
            _check_group(extractor, group, f"train.{group}_rate")
    freeze(extractor, settings.freeze, "" if settings.freeze_to.startswith("head_") else settings.freeze_to)


def _check_group(model, group, key):
    there = {layer_group(layer) for layer in all_layers(model)} | {"heads"}
    if group not in there:
        names = ", ".join(name for name in GROUPS if name in there)
        raise ConfigError(f"{key}: this network has no layers of the group {group} (it has: {names})")


def _find(model, name):
    """The layer called `name`, and the (model, layer of it) that lead to it, outermost first."""
    places = list(_places(model))
    backbone = next((place for place in places if place[1].name == _BACKBONE), places[0])
    for path, inner in (backbone, *places):
        names = [layer.name for layer in inner.layers]
        if inner is backbone[1] and (name in names or re.fullmatch(r"-?[0-9]{1,9}", name)):
            return lookup.find_layer(inner, name, "train.freeze_to: the backbone"), path, inner
        if name in names and lookup.name_of(inner, inner.get_layer(name)) == name:
            return inner.get_layer(name), path, inner
    near = suggest(name, [layer.name for _, inner in places for layer in inner.layers])
    raise ConfigError(f"train.freeze_to: this network has no layer {name!r}{near}")


def _places(model, path=()):
    """Each (path, model) of a model and those inside it; a path is the (model, layer of it) that lead there."""
    yield path, model
    for layer in model.layers:
        if _nodes(layer):
            yield from _places(layer, (*path, (model, layer)))


def _up_to(layer, path, model):
    """A layer and all that it depends on, models opened."""
    found = [layer]
    for outer, inner in (*path, (model, layer)):
        found += _ancestors(outer, inner)
    layers = [one for one in found if isinstance(one, keras.Layer)]  # a slice is an operation alone
    return [part for one in layers for part in (all_layers(one) if isinstance(one, keras.Model) else [one])]


def _ancestors(model, layer):
    """The layers of a model that one of its layers depends on; what else they are part of does not count."""
    parents = {}
    for node in _nodes(model):
        parents.setdefault(node.operation, []).extend(parent.operation for parent in node.parent_nodes)
    found, waiting = {}, [layer]
    while waiting:
        new = [parent for parent in parents.get(waiting.pop(), ()) if parent not in found]
        found |= dict.fromkeys(new)
        waiting += new
    return list(found)


def _nodes(model):
    """The calls of layers that make up a model; none for a layer, or a model written as a class."""
    graph = getattr(model, "_functional", model)  # that of keras.Sequential
    return [node for nodes in getattr(graph, "_nodes_by_depth", {}).values() for node in nodes]
