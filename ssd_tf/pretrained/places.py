"""Where arrays of a file belong in a network; checked as a whole before the first weight changes."""

from dataclasses import dataclass

import numpy as np

from ssd_tf import weight_files
from ssd_tf.errors import DataError, shown
from ssd_tf.models import detector


@dataclass(frozen=True)
class Place:
    """A weight of a layer, and how it lies in the file.

    Attributes:
      layer: name of the layer.
      weight: attribute of the layer that holds the weight.
      axes: transposition that turns the file's array into the weight.
      take: indices along the weight's last axis: which of the file's entries it holds, in its order; () for all.
      of: entries that the file has along that axis, where `take` is given.
      steps: one int an axis of the weight: every n-th entry of the file's is taken, -1 reverses them; () for all.
      whole: shape of the file's array in the order of the weight's axes, where `steps` leave entries out.
      value: number that fills the weight where files of the kind have no array for it; None where they have one.
    """

    layer: str
    weight: str
    axes: tuple[int, ...] = (0,)
    take: tuple[int, ...] = ()
    of: int = 0
    steps: tuple[int, ...] = ()
    whole: tuple[int, ...] = ()
    value: float | None = None


def fill(model, places, shapes, read):
    """Fills a network with the arrays of a file, or leaves it as it is.

    Args:
      model: keras.Model; layers behind its last output may be left out of it.
      places: {name in the file: Place} of the whole network.
      shapes: {name in the file: shape}.
      read: function from a name to its array, float32.

    Raises:
      DataError: arrays that are missing, of another shape, unknown or not finite, variances that are negative:
        names the first.
    """
    layers = {layer.name: layer for layer in detector.all_layers(model)}
    targets = {
        name: (getattr(layers[place.layer], place.weight), place)
        for name, place in places.items()
        if place.layer in layers
    }
    stored = {name for name, place in places.items() if place.value is None}
    unknown = [f"{shown(name)[:80]} is not part of the network" for name in shapes if name not in stored]
    _refuse([*_misfits(targets, shapes), *unknown])
    arrays = {name: _find_array(name, *target, read) for name, target in targets.items()}
    _refuse([f"{name} is not finite" for name, array in arrays.items() if not np.all(np.isfinite(array))])
    # A normalisation takes the square root.
    variances = [name for name, (_, place) in targets.items() if place.weight == "moving_variance"]
    _refuse([f"{name} is negative" for name in variances if np.any(arrays[name] < 0)])
    for name, (variable, _) in targets.items():
        variable.assign(arrays[name])


def _find_array(name, variable, place, read):
    if place.value is not None:
        return np.full(variable.shape, place.value, np.float32)
    array = read(name).transpose(place.axes)
    if place.steps:
        # A copy: the file's array may be 36 times as large, and must not stay in the memory for its sake.
        array = array[tuple(slice(None, None, step) for step in place.steps)].copy()
    return array[..., list(place.take)] if place.take else array


def _misfits(targets, shapes):
    for name, (variable, place) in targets.items():
        if place.value is not None:
            continue
        shape = place.whole or variable.shape
        shape = (*shape[:-1], place.of) if place.take else shape
        expected = tuple(shape[place.axes.index(axis)] for axis in range(len(place.axes)))
        if name not in shapes:
            yield f"{name} is missing"
        elif shapes[name] != expected:
            yield f"{name} is {_dimensions(shapes[name])} in the file, expected {_dimensions(expected)}"


def _dimensions(shape):
    return weight_files.dimensions(shape)[:80]


def _refuse(faults):
    if faults:
        raise DataError(f"weights do not fit: {weight_files.summarize(faults)}")
