"""Weights that other people's networks were saved with, for our backbones: which file fits which."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ssd_tf.errors import ConfigError, DataError, shown
from ssd_tf.pretrained import places, safetensors_file, timm


@dataclass(frozen=True)
class Importer:
    """How files of one format fill one backbone.

    Attributes:
      open: context manager (path) -> ({name: shape}, function from a name to its array).
      places: {name: places.Place}.
      is_unused: function (name) -> whether an array may be there and is not read.
    """

    open: Callable
    places: dict[str, places.Place]
    is_unused: Callable


# {suffix of the file: {backbone: Importer}}
_IMPORTERS = {
    ".safetensors": {
        "inception_v4": Importer(safetensors_file.open_safetensors, timm.inception_v4_places(), timm.is_unused)
    },
}

# Files that ssd-import alone reads.
_TO_IMPORT = re.compile(r"\.(pth|pt|pb|json|ckpt(-\d+)?)")


def find_importer(settings):
    """Returns the Importer for model.weights, or None where Keras reads it or there is nothing to read.

    Args:
      settings: config.ModelConfig.

    Raises:
      ConfigError: a format that is not read for this backbone.
    """
    suffix = Path(settings.weights).suffix.lower()
    if _TO_IMPORT.fullmatch(suffix):
        raise ConfigError(
            f"model.weights: {suffix} files are imported first: ssd-import --source=NAME "
            f"--weights={shown(settings.weights)} --output=FILE.weights.h5 (ssd-import --list has the names)"
        )
    by_backbone = _IMPORTERS.get(suffix)
    if by_backbone is None:
        return None
    if settings.backbone not in by_backbone:
        raise ConfigError(
            f"model.weights: {suffix} files are read for {', '.join(by_backbone)}, not for {settings.backbone}: "
            f"{shown(settings.weights)}"
        )
    return by_backbone[settings.backbone]


def load_backbone(importer, path, model):
    """Fills a backbone from a file, or leaves it as it is.

    Args:
      importer: Importer.
      path: the file.
      model: keras.Model, the backbone up to its last tap.

    Raises:
      DataError: the file is unreadable or does not fit; names it.
      EnvironmentFault: a package is missing.
    """
    try:
        with importer.open(path) as (shapes, read):
            used = {name: shape for name, shape in shapes.items() if not importer.is_unused(name)}
            places.fill(model, importer.places, used, read)
    except DataError as error:
        raise DataError(f"{error}: {shown(path)}") from None
