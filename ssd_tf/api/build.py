"""Config to network, anchors and losses: where the rooms meet. Needs Keras, not TensorFlow."""

import contextlib
import warnings
from dataclasses import dataclass

import keras
import numpy as np

from ssd_tf.api.weights import load_extractor
from ssd_tf.boxes import anchors as anchor_boxes
from ssd_tf.errors import ConfigError
from ssd_tf.models import detector, freezing, registry
from ssd_tf.models.extractor import check_weights, feature_extractor
from ssd_tf.pretrained import importers
from ssd_tf.training import losses


@dataclass(frozen=True)
class Detector:
    """A network and the anchors its outputs refer to.

    Attributes:
      model: keras.Model, see models.detector.build_ssd.
      anchors: float32 [A, 4], yxyx normalised.
      map_sizes: (rows, columns) of each feature map.
    """

    model: keras.Model
    anchors: np.ndarray
    map_sizes: tuple[tuple[int, int], ...]


def build(config, load_weights=True, precision="float32"):
    """Builds a detector.

    Args:
      config: Config with model.num_classes set.
      load_weights: False leaves the backbone as initialised; nothing is read or fetched.
      precision: Keras dtype policy; heads and box arithmetic are float32 in any case.

    Returns:
      Detector.

    Raises:
      ConfigError: model.num_classes is unset, or the parts do not fit together.
      DataError: model.weights is refused or does not fit.
    """
    if config.model.num_classes < 1:
        raise ConfigError("model.num_classes is not set (the records or --set model.num_classes=N give it)")
    with _dtype_policy(precision):
        extractor = load_extractor(config.model) if load_weights else feature_extractor(config.model, False)
        sizes = map_sizes(extractor)
        spec = _anchor_spec(config, sizes)
        counts = anchor_boxes.num_anchors_per_cell(spec)
        model = detector.build_ssd(
            extractor,
            config.model.num_classes,
            counts,
            config.model,
            config.loss.has_background,
            losses.initial_logit(config.loss),
        )
    return Detector(model, _anchors(config, spec, sizes), sizes)


def check(config, load_weights=True):
    """Finds what is wrong with a Config before any weights or data are read.

    Args:
      config: Config.
      load_weights: whether model.weights is going to be read.

    Raises:
      ConfigError: the parts of the network do not fit together, or cannot be frozen as asked for.
      DataError: there is no such weights file.
    """
    if load_weights:
        importers.find_importer(config.model)
        check_weights(config.model)
    extractor = feature_extractor(config.model, load_weights=False)
    freezing.check(extractor, config.train)
    _anchors_of(extractor, config)


def build_model(config):
    """Builds the network of a Config, with its backbone's weights.

    Args:
      config: Config with model.num_classes set.

    Returns:
      keras.Model, uint8 [B, H, W, 3] RGB to {"class_logits": [B, A, C + 1], "box_deltas": [B, A, 4]}, float32;
      ready to compile and fit.

    Raises:
      ConfigError: model.num_classes is unset, or the parts do not fit together.
    """
    return build(config, precision=config.train.precision).model


def build_anchors(config):
    """Returns the anchors of a Config, float32 [A, 4] yxyx normalised, without reading any weights."""
    return _anchors_of(feature_extractor(config.model, load_weights=False), config)


def _anchors_of(extractor, config):
    sizes = map_sizes(extractor)
    return _anchors(config, _anchor_spec(config, sizes), sizes)


def build_map_sizes(config):
    """Returns the (rows, columns) of each feature map of a Config, without reading any weights."""
    return map_sizes(feature_extractor(config.model, load_weights=False))


def map_sizes(extractor):
    """Returns the (rows, columns) of each feature map of a built extractor."""
    return tuple(tuple(output.shape[1:3]) for output in extractor.outputs)


def _anchor_spec(config, sizes):
    part = config.anchors
    chosen = part.sizes
    if not chosen and part.preset == "auto":
        layout = registry.get_layout(registry.get_backbone(config.model.backbone), config.model)
        chosen = layout.anchor_sizes if len(layout.anchor_sizes) == len(sizes) + 1 else ()
    return anchor_boxes.resolve_spec(
        len(sizes), part.preset, chosen, part.ratios, part.steps, part.offset, part.clip
    )


def _anchors(config, spec, sizes):
    image_size = config.model.image_size
    if spec.steps and not spec.fixed_steps and not anchor_boxes.steps_fit(spec, sizes, image_size):
        warnings.warn(f"anchors.steps do not fit maps of {sizes}: image size / cells is used", stacklevel=3)
    return anchor_boxes.make_anchors(spec, sizes, image_size)


@contextlib.contextmanager
def _dtype_policy(name):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
