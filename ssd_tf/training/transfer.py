"""Weights of one detector in another, whose classes may be others."""

from dataclasses import dataclass, field

import keras

from ssd_tf.models import lookup

_CLASS_HEADS = "class_logits"


@dataclass(frozen=True)
class Columns:
    """The columns of a detector's class heads.

    Attributes:
      names: of the classes, in the order of their columns.
      background: columns of background that stand before them.
    """

    names: tuple[str, ...]
    background: int

    def __len__(self):
        return self.background + len(self.names)


@dataclass
class Transfer:
    """What became of every tensor, called LAYER/WEIGHT.

    Attributes:
      loaded: tensors taken over whole.
      partly: class heads of which the known columns were taken over.
      not_loaded: [tensor, reason], as initialised.
      unused: tensors of the source that have no place here.
      kept, anew: names of the classes whose columns were taken over, and were not.
    """

    loaded: list = field(default_factory=list)
    partly: list = field(default_factory=list)
    not_loaded: list = field(default_factory=list)
    unused: list = field(default_factory=list)
    kept: list = field(default_factory=list)
    anew: list = field(default_factory=list)


def transfer_weights(source, target, source_columns, target_columns):
    """Copies what fits from one detector to another: layers by name, class heads column by column.

    Args:
      source, target: keras.Model of models.detector.
      source_columns, target_columns: their Columns.

    Returns:
      Transfer.
    """
    known = dict(_weighted_layers(source))
    shared = [name for name in target_columns.names if name in source_columns.names]
    result = Transfer(kept=shared, anew=[name for name in target_columns.names if name not in shared])
    for key, layer in _weighted_layers(target):
        other = known.pop(key, None)
        if other is None:
            result.not_loaded += [[name, "not in the run"] for name in _tensors(key, layer)]
        elif _is_class_head(layer):
            _copy_columns(key, other, layer, (source_columns, target_columns), result)
        else:
            _copy_whole(key, other, layer, result)
    result.unused += [name for key, layer in known.items() for name in _tensors(key, layer)]
    return result


def _weighted_layers(model, place=""):
    """(key, layer) of all layers with weights; the key is the same in every build of a network."""
    for layer in model.layers:
        key = place + lookup.name_of(model, layer)
        if isinstance(layer, keras.Model):
            yield from _weighted_layers(layer, f"{key}/")
        elif layer.weights:
            yield key, layer


def _is_class_head(layer):
    """Whether the layer's last axis holds the columns of every anchor."""
    return layer.name.startswith("head_") and layer.name.endswith(_CLASS_HEADS)


def _tensors(key, layer):
    return [f"{key}/{weight.name}" for weight in layer.weights]


def _copy_whole(key, source, target, result):
    stored = {weight.name: weight for weight in source.weights}
    for weight in target.weights:
        name, other = f"{key}/{weight.name}", stored.pop(weight.name, None)
        if other is not None and other.shape == weight.shape:
            weight.assign(other)
            result.loaded.append(name)
        else:
            result.not_loaded.append([name, _misfit(other, weight)])
    result.unused += [f"{key}/{name}" for name in stored]


def _misfit(other, weight):
    return "not in the run" if other is None else f"{list(other.shape)} in the run, {list(weight.shape)} here"


def _copy_columns(key, source, target, columns, result):
    before, after = (len(side) for side in columns)
    anchors = target.kernel.shape[-1] // after
    fits = (*target.kernel.shape[:-1], anchors * before) == tuple(source.kernel.shape)
    for weight, other in ((target.kernel, source.kernel), (target.bias, source.bias)):
        name = f"{key}/{weight.name}"
        if not fits:
            result.not_loaded.append([name, _misfit(other, weight)])
            continue
        values, old = (keras.ops.convert_to_numpy(variable).copy() for variable in (weight, other))
        for here, there in _column_pairs(*columns):
            values[..., here::after] = old[..., there::before]
        weight.assign(values)
        result.partly.append(name)


def _column_pairs(source, target):
    """(column here, column there) of the columns that both have; of several for background the first."""
    if source.background and target.background:
        yield 0, 0
    for position, name in enumerate(target.names):
        if name in source.names:
            yield target.background + position, source.background + source.names.index(name)
