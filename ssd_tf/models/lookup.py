"""Layers of a network by what users call them: a name, or an index where Keras counts names up."""

import re

import keras

from ssd_tf.errors import ConfigError, suggest


def find_layer(model, name, where):
    """Finds a layer.

    Args:
      model: keras.Model.
      name: name of a layer, or its index: an int, or a text of digits.
      where: what asks, for the error.

    Returns:
      keras.Layer.

    Raises:
      ConfigError: no such layer (near names are given), or a name that the next build may give to another.
    """
    names = [layer.name for layer in model.layers]
    if isinstance(name, int) or re.fullmatch(r"-?[0-9]{1,9}", name):
        if not -len(names) <= int(name) < len(names):
            raise ConfigError(f"{where} has no layer {name}: it has {len(names)}")
        return model.layers[int(name)]
    if name not in names:
        raise ConfigError(f"{where} has no layer {name!r}{suggest(name, names)}")
    layer = model.get_layer(name)
    if name_of(model, layer) != name:
        raise ConfigError(
            f"{where}: Keras counts the name {name!r} up, in the next build it may be another layer's; "
            f"give the index, {name_of(model, layer)}"
        )
    return layer


def name_of(model, layer):
    """Returns what a recipe can call a layer: its name, or its index as a text where Keras made the name up."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=.)(?=[A-Z][a-z])", "_", type(layer).__name__).lower()
    automatic = re.fullmatch(rf"{re.escape(words)}(_\d+)?", layer.name)
    return str(model.layers.index(layer)) if automatic else layer.name


def widest_layers(model):
    """Returns the last of the widest layers at about 1/8, 1/16 and 1/32 of the image, as recipes can call them."""
    best = {}
    for index, layer in enumerate(model.layers):
        shape = layer.output.shape
        if len(shape) == 4 and not isinstance(layer, (keras.layers.ZeroPadding2D, keras.layers.Cropping2D)):
            best[shape[1]] = max(best.get(shape[1], (0, 0)), (shape[3], index))
    height = model.inputs[0].shape[1]
    wanted = [best[min(best, key=lambda rows: abs(rows - height / stride))][1] for stride in (8, 16, 32)]
    return [name_of(model, model.layers[index]) for index in wanted]
