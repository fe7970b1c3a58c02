"""Finer maps for small objects, out of any backbone and with its weights (Mudassar and Mukhopadhyay, BMVC 2019).

The paper's SxLy removes x strides from layer y on: each doubles the rows and columns of all later maps, and the
weights stay. Its S1L0 of MobileNet V1 is model.remove_stride_at=conv1, its S1L2 of VGG16 block1_pool.
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
      ConfigError: a layer that is not there or has no stride, or a branch beside it that keeps its stride.
    """
    chosen = [lookup.find_layer(model, name, f"model.remove_stride_at: {model.name}") for name in names]
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

    try:
        clone = keras.models.clone_model(model, clone_function=copy)
    except ValueError as error:
        raise ConfigError(
            f"model.remove_stride_at: a branch beside {', '.join(names)} keeps its stride; name its layer too "
            f"({str(error).splitlines()[0][:120]})"
        ) from error
    copy_by_position(model, clone)
    return clone


def _stride(layer):
    return max(getattr(layer, "strides", (1,)))


def at_half_resolution(model, names, output):
    """Returns `output` computed again behind a subsampled map, with the same layers ("Dualpath-Split").

    The rows and columns taken are those at which "same" puts the windows of a stride of 2, so that behind a
    convolution the second path is the network as it was before the stride was removed.

    Args:
      model: keras.Model of remove_strides.
      names: the layers without their stride, as given to remove_strides; every second row and column is taken
        behind the last of them.
      output: symbolic tensor of the model behind that layer.

    Returns:
      symbolic tensor of half the height and width.

    Raises:
      ConfigError: no stride was removed, or `output` does not depend on that layer alone.
    """
    if not names:
        raise ConfigError("model.dual_path needs model.remove_stride_at: the second path starts there")
    chosen = [lookup.find_layer(model, name, "model.dual_path") for name in names]
    split = max(chosen, key=model.layers.index).output
    rows, columns = split.shape[1:3]
    subsampled = split[:, 1 - rows % 2 :: 2, 1 - columns % 2 :: 2]
    try:
        rest = keras.Model(split, output)
    except ValueError:
        last = names[chosen.index(max(chosen, key=model.layers.index))]
        raise ConfigError(f"model.dual_path: the last tap does not lie behind {last!r} alone") from None
    of_any_size = keras.Input((None, None, split.shape[-1]))
    rest = keras.models.clone_model(rest, of_any_size, clone_function=lambda layer: layer)  # the layers are shared
    return rest.call(subsampled)  # layer by layer: a model inside that shares layers cannot be saved as a whole
