"""Backbones by name: what a network is called, where its feature maps are tapped, what its input looks like.

A backbone is a function (image_shape, weights) -> keras.Model without classifier. Channels and map sizes are read
from the built model, so nothing else has to be said about it.
"""

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import keras
from keras import ops

from ssd_tf.errors import ConfigError, suggest
from ssd_tf.models import layers
from ssd_tf.models.twins import application_model

_BACKBONES = {}
_TOLERANCE = 1e-3  # of a grey level
# The settings that a backbone's function may take beside shape and weights.
OPTIONS = ("width", "layout", "padding", "activation", "tap_norm", "reduced_tail")


@dataclass(frozen=True)
class Layout:
    """One way to read feature maps from a backbone.

    Attributes:
      taps: layer names, or integer indices where Keras names layers automatically; fine to coarse.
      extras: auxiliary layers, or None for the standard rule; they end earlier where a map is too small for one.
      extras_after: layer that the auxiliary layers follow; None: the last tap.
      anchor_sizes: what anchors.preset "auto" uses where levels come out as many: one more than levels, as
        fractions of the shorter image side; () for the rule of boxes.anchors.
    """

    taps: tuple[str | int, ...]
    extras: tuple[layers.Extra, ...] | None = None
    extras_after: str | int | None = None
    anchor_sizes: tuple[float, ...] = ()


@dataclass(frozen=True)
class Backbone:
    """A registered backbone.

    Attributes:
      name: the key of model.backbone.
      build: function (image_shape, weights) -> keras.Model; it may take the settings of OPTIONS too.
      preprocessing: key of layers.PREPROCESSING.
      layouts: {name: Layout}, "default" among them.
      no_imagenet: why it cannot have model.weights=imagenet, and what it can; empty where it can.
    """

    name: str
    build: Callable
    preprocessing: str
    layouts: dict[str, Layout]
    no_imagenet: str = ""

    @property
    def options(self):
        """Names of the settings that the function takes beside shape and weights."""
        return tuple(name for name in OPTIONS if name in inspect.signature(self.build).parameters)

    @property
    def summary(self):
        """The first line of the function's docstring up to a semicolon, or an empty text."""
        return (inspect.getdoc(self.build) or "").split("\n")[0].split(";")[0].removesuffix(".")


def register_backbone(name, taps, preprocessing="none", extras=None, layouts=None, no_imagenet=""):
    """Registers the decorated function as a backbone.

    Args:
      name: what model.backbone calls it.
      taps: layers whose outputs the heads read, fine to coarse: names or integer indices.
      preprocessing: "caffe", "tf", "torch" or "none", as Keras names them; the input is RGB 0..255.
      extras: tuple of layers.Extra, or None for the standard rule.
      layouts: {name: Layout}, other ways to tap it (model.layout), or None.
      no_imagenet: where there are no ImageNet weights, a text that says what to set instead.

    Returns:
      the decorator. The function takes (image_shape, weights): (H, W, 3), and None, "imagenet" or a path; it
      returns a keras.Model without classifier. Parameters called as one of OPTIONS get that setting. Layers
      called neck_, extra_ or head_... count to those groups, all others to the backbone (layer_group).

    Raises:
      ConfigError: the name is taken or no text, the preprocessing unknown, or the extras are none.
    """
    if not isinstance(name, str):
        raise ConfigError(f"the name of a backbone is a text, not {name!r}")
    if name in _BACKBONES:
        raise ConfigError(f"backbone {name!r} is registered already")
    if preprocessing not in layers.PREPROCESSING:
        raise ConfigError(
            f"backbone {name!r}: preprocessing {preprocessing!r} is none of {', '.join(layers.PREPROCESSING)}"
            f"{suggest(preprocessing, layers.PREPROCESSING)}"
        )
    if extras is not None and not all(isinstance(extra, layers.Extra) for extra in extras):
        raise ConfigError(f"backbone {name!r}: extras are a tuple of ssd_tf.models.layers.Extra, or None")
    taps = (taps,) if isinstance(taps, str) else tuple(taps)
    layouts = {"default": Layout(taps, extras), **(layouts or {})}

    def register(build):
        _BACKBONES[name] = Backbone(name, build, preprocessing, layouts, no_imagenet)
        return build

    return register


def list_backbones():
    """Returns the names of all registered backbones, sorted."""
    return sorted(_BACKBONES)


def get_backbone(name):
    """Returns the Backbone called `name`, registered or of keras.applications.

    Raises:
      ConfigError: there is none; near names are given.
    """
    if name in _BACKBONES:
        return _BACKBONES[name]
    if name in _list_applications():
        return _application_backbone(name)
    near = suggest(name, [*_BACKBONES, *_list_applications()])
    raise ConfigError(
        f"unknown backbone {name!r}{near}; there are: {', '.join(list_backbones())}, any model of "
        "keras.applications, and your own: --plugin=FILE, or in Python import the file"
    )


def get_layout(backbone, settings):
    """Returns the Layout that config.ModelConfig `settings` asks for; its taps replace the layout's.

    That of a model of keras.applications has no taps of its own.

    Raises:
      ConfigError: no such layout.
    """
    if settings.layout not in backbone.layouts:
        known = ", ".join(backbone.layouts)
        raise ConfigError(
            f"model.layout: {backbone.name} has no layout {settings.layout!r}"
            f"{suggest(settings.layout, backbone.layouts)}; it has: {known}"
        )
    layout = backbone.layouts[settings.layout]
    if settings.taps:
        return replace(layout, taps=settings.taps, extras_after=None, anchor_sizes=())
    return layout


def _list_applications():
    """Names of the model functions of keras.applications."""
    return [name for name, value in vars(keras.applications).items() if inspect.isfunction(value)]


def _application_backbone(name):
    application = getattr(keras.applications, name)

    def build(image_shape, weights):
        return application_model(application, image_shape, weights)

    return Backbone(name, build, _application_preprocessing(application), {"default": Layout(())})


def _application_preprocessing(application):
    """The key of layers.PREPROCESSING that does what the model's own preprocess_input does."""
    color = (255.0, 20.0, 0.0)
    pixels = ops.convert_to_tensor([[[color]]], "float32")
    expected = ops.convert_to_numpy(sys.modules[application.__module__].preprocess_input(pixels)).ravel()
    for mode, (mean, scale) in layers.PREPROCESSING.items():
        values = [(value - shift) * factor for value, shift, factor in zip(color, mean, scale)]
        if mode == "caffe":
            values.reverse()
        if all(abs(value - other) < _TOLERANCE for value, other in zip(values, expected)):
            return mode
    raise ConfigError(f"{application.__name__} expects an input that no model.preprocessing gives")


def layer_group(layer):
    """Returns the group of a layer for freezing and learning rates: backbone, neck, extras or heads."""
    for prefix, group in (("extra_", "extras"), ("head_", "heads"), ("neck_", "neck")):
        if layer.name.startswith(prefix):
            return group
    return "backbone"
