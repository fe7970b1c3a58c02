"""From a recipe to feature maps: preprocessing, backbone, taps, neck and auxiliary layers."""

import contextlib
import inspect
import itertools
import re
import traceback
from pathlib import Path

import keras

from ssd_tf.config import ModelConfig
from ssd_tf.errors import ConfigError, DataError, SsdError, shown, suggest
from ssd_tf.models import layers, lookup, necks, registry, strides


def feature_extractor(settings, load_weights=True):
    """Builds the network up to the feature maps.

    Args:
      settings: config.ModelConfig.
      load_weights: False leaves the backbone as initialised: no file is read, nothing is fetched.

    Returns:
      keras.Model, uint8 [B, H, W, 3] RGB to a list of maps [B, h, w, c], fine to coarse.

    Raises:
      ConfigError: unknown backbone, layout or layer, no taps or taps out of order, image too small for the levels.
      DataError: weights that do not fit. EnvironmentFault: weights that cannot be fetched.
    """
    if load_weights:
        check_weights(settings)
    backbone = registry.get_backbone(settings.backbone)
    layout = registry.get_layout(backbone, settings)
    if not layout.taps:
        candidates = lookup.widest_layers(_build_backbone(backbone, settings, None))
        raise ConfigError(
            f"{backbone.name} comes without taps: name the layers to tap, fine to coarse, for example "
            f"model.taps={','.join(dict.fromkeys(candidates))}"
        )
    image = keras.Input((*settings.image_size, 3), dtype="uint8", name="image")
    mode = backbone.preprocessing if settings.preprocessing == "auto" else settings.preprocessing
    pixels = layers.make_preprocess(mode, settings.input_mean, settings.input_scale)(image)
    weights = settings.weights if load_weights and settings.weights != "none" else None
    body = _tapped(_build_backbone(backbone, settings, weights), layout, settings)
    outputs = body(pixels)
    maps, last = outputs[: len(layout.taps)], outputs[-1]
    if settings.neck == "fpn":
        maps = necks.add_fpn(maps, settings.neck_channels)
    maps = _with_extras(list(maps), last, layout, settings)
    _check_maps(maps, settings)
    return keras.Model(image, maps, name="feature_extractor")


def check_weights(settings):
    """Checks what can be said about model.weights without reading any.

    Args:
      settings: config.ModelConfig.

    Raises:
      ConfigError: there are no ImageNet weights for this backbone. DataError: no such file.
    """
    backbone, what = registry.get_backbone(settings.backbone), settings.backbone
    instead = backbone.no_imagenet
    if settings.reduced_tail and "reduced_tail" in backbone.options:
        what, instead = f"{what} with model.reduced_tail", "set model.weights=none"
    if settings.weights == "imagenet" and instead:
        raise ConfigError(f"model.weights: there are no ImageNet weights for {what} to fetch: {instead}")
    if settings.weights not in ("none", "imagenet") and not Path(settings.weights).is_file():
        near = suggest(settings.weights, ("none", "imagenet"))
        raise DataError(f"model.weights: no such file: {shown(settings.weights)}{near}")


def _build_backbone(backbone, settings, weights):
    """The backbone as its function makes it, with the strides removed that the recipe names."""
    _check_options(backbone, settings)
    options = {name: getattr(settings, name) for name in backbone.options}
    with _building(backbone.name, settings.image_size, weights, backbone.build):
        model = backbone.build((*settings.image_size, 3), weights, **options)
        _check_model(model, backbone.name, settings.image_size)
        if settings.remove_stride_at:
            model = strides.remove_strides(model, settings.remove_stride_at)
    return model


def _check_options(backbone, settings):
    for name in registry.OPTIONS:
        value = getattr(settings, name)
        if value != getattr(ModelConfig, name) and name not in (*backbone.options, "layout"):
            raise ConfigError(f"model.{name}={value}: {backbone.name} has no such option")


def _check_model(model, name, image_size):
    if not isinstance(model, keras.Model):
        raise ConfigError(f"backbone {name!r}: its function returns a {type(model).__name__}, not a keras.Model")
    shapes = [tuple(tensor.shape[1:]) for tensor in model.inputs]
    if len(shapes) != 1 or any(side not in (None, wanted) for side, wanted in zip(shapes[0], (*image_size, 3))):
        taken = " and ".join(map(str, shapes))
        raise ConfigError(f"backbone {name!r}: its model takes {taken}, not image_shape {(*image_size, 3)} alone")


def _tapped(model, layout, settings):
    """The backbone as a model from pixels to its taps, and to the map that the auxiliary layers follow."""
    where = f"backbone {settings.backbone!r}"
    outputs = [_find_map(model, tap, where) for tap in layout.taps]
    if len({id(output) for output in outputs}) < len(outputs):
        raise ConfigError(f"{where}: a layer is tapped twice: {', '.join(map(str, layout.taps))}")
    last = outputs[-1]
    if layout.extras_after is not None:
        last = _find_map(model, layout.extras_after, where)
    if settings.dual_path:
        last = strides.at_half_resolution(model, settings.remove_stride_at, last)
    if last is not outputs[-1]:
        outputs.append(last)
    return keras.Model(model.inputs[0], outputs, name="backbone")


def _find_map(model, tap, where):
    output = lookup.find_layer(model, tap, where).output
    if len(output.shape) != 4:
        raise ConfigError(f"{where}: layer {tap!r} gives no map of rows and columns")
    return output


@contextlib.contextmanager
def _building(name, image_size, weights, build):
    """Turns Keras' errors about sizes and files into ours; `build` is the function that is called."""
    try:
        yield
    except SsdError:
        raise
    except Exception as error:  # Keras raises ValueError, OSError, KeyError and bare Exception here
        reason = _reason(error) + _place(error, build)
        if weights == "imagenet":
            raise ConfigError(
                f"model.weights=imagenet does not work for {name} ({reason}); set a weights file or none"
            ) from error
        if weights is not None:
            raise DataError(f"{shown(weights)} does not fit {name}: {reason}") from error
        raise ConfigError(f"{name} cannot be built at {image_size[0]}x{image_size[1]}: {reason}") from error


def _place(error, build):
    """Where in a user's own file the error arose, as text; empty where the function is one of ours."""
    file = build.__code__.co_filename if inspect.isfunction(build) else None
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" ({file}, line {lines[-1]})" if lines and not build.__module__.startswith("ssd_tf.") else ""


def _reason(error):
    """The line of a Keras error that says what is wrong: those that say where it came from are left out."""
    lines = [re.sub(r"\x1b\[\d*m", "", line).strip() for line in str(error).splitlines()]
    telling = [line for line in lines if line and not line.startswith("Exception encountered")]
    return (telling or [type(error).__name__])[0][:160]


def _with_extras(maps, last, layout, settings):
    """Appends auxiliary layers after `last` until the chain ends or there are as many levels as asked for."""
    level = 0
    while not settings.levels or len(maps) < settings.levels:
        extra = _choose_extra(tuple(last.shape[1:3]), level, layout, settings.extras_chain)
        if extra is None:
            break
        level += 1
        style = (settings.extras, settings.extras_norm, settings.activation)
        last = layers.add_extra(last, extra, f"extra_{level}", *style)
        maps.append(last)
    return maps[: settings.levels or None]


def _choose_extra(size, level, layout, chain):
    """The Extra after a map of `size`: the recipe's, else the layout's, else the rule's; None at the end."""
    if chain:
        return _listed_extra(size, level, chain)
    if layout.extras is None:
        return layers.next_extra(size, level)
    if max(size) == 1 or level >= len(layout.extras):
        return None
    return layout.extras[level] if min(layers.extra_size(size, layout.extras[level])) >= 1 else None


def _listed_extra(size, level, chain):
    """An entry of model.extras_chain, checked against the map that it reads."""
    if level >= len(chain):
        return None
    extra = layers.Extra(*chain[level])
    after = layers.extra_size(size, extra)
    where, what = f"model.extras_chain: entry {level + 1}", f"a {size[0]}x{size[1]} map"
    if min(after) < 1:
        raise ConfigError(f"{where}: kernel {extra.kernel} does not fit {what} with padding {extra.padding}")
    if after[0] > size[0] or after[1] > size[1]:
        raise ConfigError(f"{where}: makes {what} larger, {after[0]}x{after[1]}; maps go from fine to coarse")
    return extra


def _check_maps(maps, settings):
    sizes = [tuple(feature.shape[1:3]) for feature in maps]
    for fine, coarse in itertools.pairwise(sizes):
        if not (coarse[0] <= fine[0] and coarse[1] <= fine[1]):
            raise ConfigError(f"taps out of order: a {coarse} map follows a {fine} one")
    if len(maps) < settings.levels:
        raise ConfigError(
            f"model.levels={settings.levels}: {settings.backbone} at {settings.image_size[0]}x"
            f"{settings.image_size[1]} has {len(maps)} levels"
        )
