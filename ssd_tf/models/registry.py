"""Backbones by name, and the feature extractor that any of them becomes: taps and auxiliary layers.

A backbone is a function (image_shape, weights) -> keras.Model, registered with the layers to tap and the
preprocessing it expects. Channels and map sizes are always read from the built model.
"""

import contextlib
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import keras

from ssd_tf.errors import ConfigError, DataError, EnvironmentFault, shown, suggest
from ssd_tf.models import layers

_BACKBONES = {}


@dataclass(frozen=True)
class Backbone:
    """A registered backbone.

    Attributes:
      name: the key of model.backbone.
      build: function (image_shape, weights) -> keras.Model.
      taps: layer names, or integer indices where Keras names layers automatically; fine to coarse.
      preprocessing: key of layers.PREPROCESSING.
      extras: auxiliary layers, or None for the standard rule.
    """

    name: str
    build: Callable
    taps: tuple[str | int, ...]
    preprocessing: str
    extras: tuple[layers.Extra, ...] | None = None


def register_backbone(name, taps, preprocessing="none", extras=None):
    """Registers the decorated function as a backbone.

    Args:
      name: what model.backbone calls it.
      taps: layers whose outputs the heads read, fine to coarse: names or integer indices.
      preprocessing: "caffe", "tf", "torch" or "none", as Keras names them; the input is RGB 0..255.
      extras: tuple of layers.Extra, or None for the standard rule.

    Returns:
      the decorator. The function takes (image_shape, weights): (H, W, 3), and None, "imagenet" or a path; it
      returns a keras.Model without classifier.

    Raises:
      ConfigError: the name is taken, or the preprocessing unknown.
    """
    if name in _BACKBONES:
        raise ConfigError(f"backbone {name!r} is registered already")
    if preprocessing not in layers.PREPROCESSING:
        raise ConfigError(
            f"backbone {name!r}: preprocessing {preprocessing!r} is none of {[*layers.PREPROCESSING]}"
        )

    def register(build):
        _BACKBONES[name] = Backbone(name, build, tuple(taps), preprocessing, extras)
        return build

    return register


def list_backbones():
    """Returns the names of all registered backbones, sorted."""
    return sorted(_BACKBONES)


def get_backbone(name):
    """Returns the Backbone called `name`; ConfigError with near names if there is none."""
    if name not in _BACKBONES:
        raise ConfigError(
            f"unknown backbone {name!r}{suggest(name, _BACKBONES)}; there are: {', '.join(list_backbones())}"
        )
    return _BACKBONES[name]


def feature_extractor(settings, load_weights=True):
    """Builds the network up to the feature maps.

    Args:
      settings: config.ModelConfig.
      load_weights: False leaves the backbone as initialised: no file is read, nothing is fetched.

    Returns:
      keras.Model, uint8 [B, H, W, 3] RGB to a list of maps [B, h, w, c], fine to coarse.

    Raises:
      ConfigError: unknown backbone or tap, taps out of order, an image too small for the levels asked for.
      DataError: weights that do not fit. EnvironmentFault: weights that cannot be fetched.
    """
    backbone = get_backbone(settings.backbone)
    image = keras.Input((*settings.image_size, 3), dtype="uint8", name="image")
    mode = backbone.preprocessing if settings.preprocessing == "auto" else settings.preprocessing
    pixels = layers.make_preprocess(mode, settings.input_mean, settings.input_scale)(image)
    weights = settings.weights if load_weights and settings.weights != "none" else None
    maps = _tapped(backbone, settings, weights)(pixels)
    maps = _with_extras(list(maps), backbone, settings)
    return keras.Model(image, maps, name="feature_extractor")


def _tapped(backbone, settings, weights):
    """The backbone as a model from pixels to its taps."""
    if weights not in (None, "imagenet") and not Path(weights).is_file():
        raise DataError(f"model.weights: no such file: {shown(weights)}")
    with _building(backbone.name, settings.image_size, weights):
        model = backbone.build((*settings.image_size, 3), weights)
    outputs = [_tap(model, tap, backbone.name) for tap in backbone.taps]
    return keras.Model(model.inputs[0], outputs, name="backbone")


def _tap(model, tap, name):
    names = [layer.name for layer in model.layers]
    if isinstance(tap, int) and -len(names) <= tap < len(names):
        return model.layers[tap].output
    if tap not in names:
        raise ConfigError(f"backbone {name!r} has no layer {tap!r}{suggest(tap, names)}")
    return model.get_layer(tap).output


@contextlib.contextmanager
def _building(name, image_size, weights):
    """Turns Keras' errors about sizes, files and downloads into ours."""
    try:
        yield
    except (ConfigError, DataError):
        raise
    except Exception as error:  # Keras raises ValueError, OSError, KeyError and bare Exception here
        reason = _reason(error)
        if weights == "imagenet" and "URL fetch failure" in str(error):
            raise EnvironmentFault(
                "ImageNet weights not reachable; set model.weights=/path or model.weights=none"
            ) from error
        if weights is not None:
            raise DataError(f"{shown(weights)} does not fit {name}: {reason}") from error
        raise ConfigError(f"{name} cannot be built at {image_size[0]}x{image_size[1]}: {reason}") from error


def _reason(error):
    """The line of a Keras error that says what is wrong: those that say where it came from are left out."""
    lines = [re.sub(r"\x1b\[\d*m", "", line).strip() for line in str(error).splitlines()]
    telling = [line for line in lines if line and not line.startswith("Exception encountered")]
    return (telling or [type(error).__name__])[0][:160]


def _with_extras(maps, backbone, settings):
    """Appends auxiliary layers until the chain ends or there are as many levels as asked for."""
    level = 0
    while not settings.levels or len(maps) < settings.levels:
        extra = _choose_extra(tuple(maps[-1].shape[1:3]), level, backbone, settings.extras_chain)
        if extra is None:
            break
        maps.append(layers.add_extra(maps[-1], extra, f"extra_{level + 1}", settings.extras, settings.extras_norm))
        level += 1
    maps = maps[: settings.levels or None]
    _check_maps(maps, settings)
    return maps


def _choose_extra(size, level, backbone, chain):
    """The Extra after a map of `size`: the recipe's, else the backbone's, else the rule's; None at the end."""
    if chain:
        return _listed_extra(size, level, chain)
    if backbone.extras is None:
        return layers.next_extra(size, level)
    return backbone.extras[level] if max(size) > 1 and level < len(backbone.extras) else None


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


def layer_group(layer):
    """Returns the group of a layer for freezing and learning rates: backbone, neck, extras or heads."""
    for prefix, group in (("extra_", "extras"), ("head_", "heads"), ("neck_", "neck")):
        if layer.name.startswith(prefix):
            return group
    return "backbone"
