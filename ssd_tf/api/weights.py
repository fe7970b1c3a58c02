"""The network up to its feature maps, with the weights that model.weights names. Needs Keras, not TensorFlow."""

from pathlib import Path

from ssd_tf import weight_files
from ssd_tf.models.extractor import check_weights, feature_extractor
from ssd_tf.pretrained import importers


def load_extractor(settings):
    """Builds the network up to the feature maps and fills its backbone.

    Args:
      settings: config.ModelConfig.

    Returns:
      keras.Model, see models.extractor.feature_extractor.

    Raises:
      ConfigError: the parts do not fit together. DataError: model.weights is refused or does not fit.
      EnvironmentFault: weights that cannot be fetched, or a missing package.
    """
    importer = importers.find_importer(settings)
    if importer is None:
        if Path(settings.weights).is_file():
            weight_files.check_weights_file(settings.weights)
        return feature_extractor(settings)
    check_weights(settings)
    extractor = feature_extractor(settings, load_weights=False)
    importers.load_backbone(importer, settings.weights, extractor.get_layer("backbone"))
    return extractor
