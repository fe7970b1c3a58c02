"""Finer maps for small objects, out of any backbone and with its weights (Mudassar and Mukhopadhyay, BMVC 2019).

The paper's SxLy removes x strides from layer y on: every later map has twice the cells a removal, and the weights
stay. Its S1L0 of MobileNet V1 is model.remove_stride_at=conv1, its S1L2 of VGG16 block1_pool.
"""

import keras

from ssd_tf.errors import ConfigError
from ssd_tf.models import lookup
from ssd_tf.models.twins import copy_by_position


def remove_strides(model, names):
    """Returns a copy of a model in which the named layers have stride 1.

    A pool no larger than its stride becomes the identity, as in the paper.

    Args:
      model: keras.Model, functional.
      names: convolutions and pools with a stride, by name or index (lookup.find_layer).

    Returns:
      keras.Model with layers of the same names and equal weights.

    Raises:
      ConfigError: a layer that is not there or has no stride.
    """
    chosen = [lookup.find_layer(model, name, "model.remove_stride_at:") for name in names]
    for name, layer in zip(names, chosen):
        if _stride(layer) == 1:
            strided = [lookup.name_of(model, other) for other in model.layers if _stride(other) > 1]
            raise ConfigError(
                f"model.remove_stride_at: {name!r} has no stride; layers with one: {', '.join(strided)}"
            )

    def copy(layer):
        config = layer.get_config()
        if layer in chosen:
            if max(config.get("pool_size", (0,))) <= _stride(layer) and "pool_size" in config:
                config["pool_size"] = (1, 1)
            config["strides"] = (1, 1)
        return type(layer).from_config(config)

    clone = keras.models.clone_model(model, clone_function=copy)
    copy_by_position(model, clone)
    return clone


def _stride(layer):
    return max(getattr(layer, "strides", (1,)))


def at_half_resolution(model, names, output):
    """Returns `output` computed again behind a subsampled map, with the same layers ("Dualpath-Split").

    Args:
      model: keras.Model of remove_strides.
      names: the layers without their stride, as given to remove_strides; every second row and column is taken
        behind the last of them.
      output: symbolic tensor of the model behind that layer.

    Returns:
      symbolic tensor of half the height and width.

    Raises:
      ConfigError: no stride was removed.
    """
    if not names:
        raise ConfigError("model.dual_path needs model.remove_stride_at: the second path starts there")
    split = lookup.find_layer(model, names[-1], "model.dual_path").output
    subsampled = keras.layers.MaxPooling2D(1, 2, padding="same", name="dual_path_subsample")(split)
    rest = keras.Model(split, output)
    half = keras.Input(subsampled.shape[1:])
    rest = keras.models.clone_model(rest, half, clone_function=lambda layer: layer)  # the layers are shared
    rest.name = "dual_path"
    return rest(subsampled)
