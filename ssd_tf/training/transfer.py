"""Weights of one detector in another, whose classes may be others."""

from dataclasses import dataclass, field

import keras

from ssd_tf.errors import ConfigError
from ssd_tf.models import lookup

_CLASS_HEADS = "class_logits"
_NEAR_MEAN, _NEAR_SCALE = 2.0, 0.05  # grey levels, and a fraction: inputs that weights do not tell apart


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
      heads: number of class heads of which columns were taken over, and of all.
    """

    loaded: list = field(default_factory=list)
    partly: list = field(default_factory=list)
    not_loaded: list = field(default_factory=list)
    unused: list = field(default_factory=list)
    kept: list = field(default_factory=list)
    anew: list = field(default_factory=list)
    heads: list = field(default_factory=lambda: [0, 0])


def transfer_weights(source, target, source_columns, target_columns):
    """Copies what fits from one detector to another: layers by name, class heads column by column.

    A layer is taken whole or not at all, and a batch norm only with the convolution before it.

    Args:
      source, target: keras.Model of models.detector.
      source_columns, target_columns: their Columns.

    Returns:
      Transfer.
    """
    known = dict(_weighted_layers(source))
    result, new = Transfer(), set()
    for key, layer in _weighted_layers(target):
        other = known.pop(key, None)
        if _is_class_head(layer):
            fits = _copy_columns(key, other, layer, (source_columns, target_columns), result)
            result.heads = [result.heads[0] + fits, result.heads[1] + 1]
        elif not _copy_whole(key, other, layer, _feeding_layer(layer) in new, result):
            new.add(layer)
    for name in target_columns.names:
        kept = result.heads[0] and name in source_columns.names
        (result.kept if kept else result.anew).append(name)
    result.unused += [name for key, layer in known.items() for name in _tensors(key, layer)]
    return result


def _feeding_layer(layer):
    """The layer whose output a batch norm normalises; None of any other layer."""
    if not isinstance(layer, keras.layers.BatchNormalization):
        return None
    return layer._inbound_nodes[0].input_tensors[0]._keras_history.operation


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


def _copy_whole(key, source, target, feeds_on_new, result):
    """Copies a layer, or notes why not; tells whether it did."""
    stored = {} if source is None else {weight.name: weight for weight in source.weights}
    misfits = [_misfit(stored.get(weight.name), weight) for weight in target.weights]
    if any(misfits) or feeds_on_new:
        reasons = [misfit or "belongs to weights that were not loaded" for misfit in misfits]
        result.not_loaded += [list(pair) for pair in zip(_tensors(key, target), reasons, strict=True)]
        return False
    for weight in target.weights:
        weight.assign(stored.pop(weight.name))
    result.loaded += _tensors(key, target)
    result.unused += [f"{key}/{name}" for name in stored]
    return True


def _misfit(other, weight):
    """Why one weight cannot become another; "" if it can."""
    if other is None:
        return "not in the run"
    same = other.shape == weight.shape
    return "" if same else f"{list(other.shape)} in the run, {list(weight.shape)} here"


def _copy_columns(key, source, target, columns, result):
    """Copies the columns that both have, or notes why not; tells whether it did."""
    before, after = (len(side) for side in columns)
    anchors = target.kernel.shape[-1] // after
    if source is None or (*target.kernel.shape[:-1], anchors * before) != tuple(source.kernel.shape):
        others = (None, None) if source is None else (source.kernel, source.bias)
        reasons = [_misfit(*pair) or "other anchors" for pair in zip(others, (target.kernel, target.bias))]
        result.not_loaded += [list(pair) for pair in zip(_tensors(key, target), reasons, strict=True)]
        return False
    for weight, other in ((target.kernel, source.kernel), (target.bias, source.bias)):
        values, old = (keras.ops.convert_to_numpy(variable).copy() for variable in (weight, other))
        for here, there in _column_pairs(*columns):
            values[..., here::after] = old[..., there::before]
        weight.assign(values)
    result.partly += _tensors(key, target)
    return True


def _column_pairs(source, target):
    """(column here, column there) of the columns that both have; of several for background the first."""
    if source.background and target.background:
        yield 0, 0
    for position, name in enumerate(target.names):
        if name in source.names:
            yield target.background + position, source.background + source.names.index(name)


def check_input(source, target):
    """Raises ConfigError if the weights of `source` have learned from pixels that `target` is not given."""
    before, here = (model.get_layer("preprocess") for model in (source, target))
    means = all(abs(one - other) <= _NEAR_MEAN for one, other in zip(before.mean, here.mean, strict=True))
    scales = all(abs(one / other - 1) <= _NEAR_SCALE for one, other in zip(before.scale, here.scale, strict=True))
    if (before.reverse, True, True) != (here.reverse, means, scales):
        raise ConfigError(
            "--init_from: its weights expect another input (channels, mean or scale) than this config gives: set "
            "model.preprocessing, model.input_mean and model.input_scale as in that run, or leave --config out"
        )


def find_changes(before, here):
    """Yields a line for each setting of two config.ModelConfig that weights depend on although they fit."""
    for key in ("padding", "activation", "norm_epsilon", "tap_norm", "remove_stride_at", "neck", "extras"):
        old, new = getattr(before, key), getattr(here, key)
        if old != new:
            yield f"the weights were trained with model.{key}={old}, here it is {new}"
