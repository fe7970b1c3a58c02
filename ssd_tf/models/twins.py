"""Networks of keras.applications that hold the weights of a file or of ImageNet, and copies of their weights.

They are what our own networks take their weights from, or they are backbones themselves.
"""

import math
import re
from collections import Counter

import keras

from ssd_tf import weight_files
from ssd_tf.errors import DataError, EnvironmentFault, shown

_TWIN_SHAPE = (224, 224, 3)  # ImageNet's: convolution weights do not depend on it, the classifier's do
_DEVIATIONS = (0.229, 0.224, 0.225)  # of ImageNet's red, green and blue, 0..1


def read_twin(application, weights, classifier=False, **options):
    """Builds a network of keras.applications and fills it.

    Args:
      application: function of keras.applications, such as keras.applications.VGG16.
      weights: "imagenet", or the path of a Keras weights file of this network with or without a classifier.
      classifier: with "imagenet", take the classifier too; that of a file is always taken.
      **options: further arguments of the application, such as alpha.

    Returns:
      keras.Model, for images of 224 x 224 or of what its classifier needs: to copy weights from.

    Raises:
      DataError: the file fits neither without nor with a classifier; names the first differences and the file.
      EnvironmentFault: ImageNet's weights cannot be fetched; names the address and what to do.
    """
    if weights == "imagenet":
        return _fetch(application, classifier, options)
    return _read_file(application, weights, _without_classifier(application, _TWIN_SHAPE, options), options)


def fill(model, application, weights, classifier=False, **options):
    """Fills a network of our own, whose layers have the names of one of keras.applications.

    Args:
      model: keras.Model.
      application, weights, classifier, **options: as of read_twin; a file may also be of `model`'s own weights.

    Returns:
      the keras.Model of keras.applications that the weights came from; None if they were the network's own.

    Raises:
      DataError: the file fits neither network; names the first differences from the nearer, and the file.
      EnvironmentFault: as read_twin does.
    """
    if weights == "imagenet":
        twin = _fetch(application, classifier, options)
    else:
        twin = _read_file_beside(model, application, weights, options)
    if twin is not None:
        copy_by_name(twin, model)
    return twin


def application_model(application, image_shape, weights, **options):
    """Builds a network of keras.applications without its classifier, to be used as it is.

    Args:
      application: function of keras.applications, such as keras.applications.DenseNet121.
      image_shape: (H, W, 3).
      weights: None, "imagenet", or the path of a Keras weights file with or without a classifier.
      **options: further arguments of the application, such as alpha.

    Returns:
      keras.Model, made of the same layers whatever the weights are.

    Raises:
      DataError, EnvironmentFault: as read_twin does.
    """
    model = _without_classifier(application, image_shape, options)
    if weights is None:
        return model
    if weights == "imagenet":
        source = _fetch(application, False, options)
    else:
        source = _read_file(application, weights, model, options)
    if source is not model:
        copy_by_position(source, model)
    _correct_deviations(model)
    return model


def read_own(model, path):
    """Fills a network of our own from a file of its weights.

    Args:
      model: keras.Model.
      path: Keras weights file, written by `save_weights` of such a model.

    Raises:
      DataError: the file does not fit; names the first differences and the file.
    """
    _assign(path, model, weight_files.find_differences(path, model), model.name)


def copy_by_name(source, target):
    """Copies weights between two models, layer by layer, by name.

    Args:
      source, target: keras.Model; layers of equal names must have equal shapes.

    Returns:
      names of the target's layers with weights that the source does not have.
    """
    named = {layer.name: layer for layer in source.layers}
    missing = []
    for layer in target.layers:
        if layer.name in named and layer.weights:
            _set_weights(layer, named[layer.name].get_weights())
        elif layer.weights:
            missing.append(layer.name)
    return missing


def copy_by_position(source, target):
    """Copies weights between two builds of one network, whose layers Keras may have named differently.

    Args:
      source: keras.Model; its layers beyond those of the target (a classifier) are left out.
      target: keras.Model.
    """
    sources, targets = ([layer for layer in model.layers if layer.weights] for model in (source, target))
    for layer, other in zip(targets, sources[: len(targets)], strict=True):
        _set_weights(layer, other.get_weights())


def _set_weights(layer, arrays):
    layer.set_weights(arrays)
    _finalize(layer)


def _finalize(layer):
    if isinstance(layer, keras.layers.Normalization):
        layer.finalize_state()  # it works with what it has computed from its weights


def _without_classifier(application, image_shape, options):
    return application(include_top=False, weights=None, input_shape=image_shape, **options)


def _read_file(application, path, model, options):
    """Fills `model`, which has no classifier, or a variant with one where the file has one; returns which."""
    model, differences = _choose_variant(application, path, model, options)
    _assign(path, model, differences, application.__name__)
    return model


def _read_file_beside(model, application, path, options):
    """Fills `model` and returns None where the file is its own, else fills and returns a network to copy from."""
    own = weight_files.find_differences(path, model)
    if not own:
        _assign(path, model, own, model.name)
        return None
    twin = _without_classifier(application, _TWIN_SHAPE, options)
    if len(own) < len(weight_files.find_differences(path, twin)):
        # With a classifier it would be the other way round: none is built, which may be large.
        raise _misfit(path, own, model.name)
    twin, differences = _choose_variant(application, path, twin, options)
    if differences and len(own) <= len(differences):
        raise _misfit(path, own, model.name)
    _assign(path, twin, differences, application.__name__)
    return twin


def _choose_variant(application, path, model, options):
    """`model`, or a variant with a classifier where the file is nearer to that; and how the file differs."""
    differences = weight_files.find_differences(path, model)
    num_classes = _count_classes(path, model) if differences else 0
    if num_classes:
        whole = application(include_top=True, weights=None, classes=num_classes, **options)
        found = weight_files.find_differences(path, whole)
        if len(found) < len(differences):
            return whole, found
    return model, differences


def _assign(path, model, differences, name):
    """Fills the model, or refuses a file that differs."""
    if differences:
        raise _misfit(path, differences, name)
    for weight, array in weight_files.read_weights(path, model):
        weight.assign(array)
    for layer in model.layers:
        _finalize(layer)


def _misfit(path, differences, name):
    return DataError(f"weights do not fit {name}: {weight_files.summarize(differences)}: {shown(path)}")


def _count_classes(path, model):
    """Classes of the classifier that a file has beyond a model without one; 0 if it is not just that."""
    wanted = Counter(tuple(weight.shape) for weight in model.weights)
    stored = list(weight_files.list_tensors(path).values())
    if wanted - Counter(stored):
        return 0
    beyond = []
    for shape in stored:
        if not wanted[shape]:
            beyond.append(shape)
        wanted[shape] -= 1
    # A classifier ends in a kernel [..., classes] and a bias [classes].
    biases = [shape for shape in beyond if len(shape) == 1]
    kernels = [shape for shape in beyond if len(shape) > 1 and biases and shape[-1] == biases[-1][0]]
    return biases[-1][0] if kernels else 0


def _fetch(application, classifier, options):
    """The application with ImageNet's weights, which Keras keeps in its cache."""
    shape = None if classifier else _TWIN_SHAPE
    try:
        return application(include_top=classifier, weights="imagenet", input_shape=shape, **options)
    except Exception as error:  # Keras raises bare Exception, urllib and HDF5 a dozen kinds
        if fault := _explain(error, application.__name__):
            raise fault from error
        raise


def _explain(error, name):
    """The fault that an error on the way to ImageNet's weights means; None if it is about no file."""
    reason = (str(error) or type(error).__name__).splitlines()[0][:200]
    if failure := re.match(r"URL fetch failure on (\S+): (.*)", reason):
        url, cause = failure[1], failure[2].removeprefix("None -- ")
        return EnvironmentFault(
            f"ImageNet weights not reachable ({cause}): {url}: download it elsewhere and set "
            f"model.weights=/path/{url.rpartition('/')[2]}, or model.weights=none"
        )
    if isinstance(error, OSError) or reason.startswith("Incomplete or corrupted file"):
        return EnvironmentFault(
            f"ImageNet weights of {name}: {reason}: delete the damaged file in Keras' cache (~/.keras/models), "
            "or set model.weights=/path/FILE or model.weights=none"
        )
    return None


def _correct_deviations(model):
    """Squares deviations that stand in the place of variances.

    Keras' ImageNet files of EfficientNet have them there. With weights="imagenet" Keras makes up for it by one
    more layer, which a model built for a file, or for a run's own weights, does not have.
    """
    for layer in model.layers:
        if isinstance(layer, keras.layers.Normalization) and layer.weights:
            mean, variance, count = layer.get_weights()
            values = variance.reshape(-1).tolist()
            pairs = list(zip(values, _DEVIATIONS))
            if len(values) == 3 and all(math.isclose(*pair, abs_tol=1e-4) for pair in pairs):
                _set_weights(layer, [mean, variance**2, count])
