"""Networks of keras.applications take a file's weights, of whichever variant and format, or say what differs."""

import sys
import urllib.error
import urllib.request

import h5py
import keras
import numpy as np
import pytest
from keras import layers

from ssd_tf.errors import DataError, EnvironmentFault
from ssd_tf.models import twins

APPLICATIONS = keras.applications
SMALL = {"alpha": 0.25}
DEVIATIONS = (0.229, 0.224, 0.225)


class Recorder:
    """An application that notes how it is called."""

    def __init__(self, application):
        self.application, self.calls, self.__name__ = application, [], application.__name__

    def __call__(self, **options):
        self.calls.append(options)
        return self.application(**options)


def auto_named(include_top, weights, input_shape=None, classes=1000):
    """A network like Inception's: Keras names all its layers, by a count that goes on over the session."""
    assert weights is None
    image = keras.Input(input_shape or (32, 32, 3))
    x = layers.Conv2D(6, 3, activation="relu")(layers.Normalization()(image))
    branches = [layers.BatchNormalization()(layers.Conv2D(6, size, padding="same")(x)) for size in (1, 3, 1)]
    x = layers.Concatenate()([layers.ReLU()(branch) for branch in branches])
    if include_top:
        x = layers.Dense(classes)(layers.Dropout(0.2)(layers.Flatten()(x)))
    return keras.Model(image, x)


def randomize(model, seed=0):
    """Gives every weight numbers of its own."""
    generator = np.random.default_rng(seed)
    for weight in model.weights:
        weight.assign(generator.uniform(0.05, 0.2, weight.shape))
    return model


def save(model, kind, folder):
    """Writes the weights in a format of Keras 3, or of Keras 2; returns the file."""
    path = folder / {"new": "model.weights.h5", "old": "model.h5"}[kind]
    if kind == "new":
        model.save_weights(path)
        return path
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.name.encode() for layer in model.layers]
        for layer in model.layers:
            names = [f"{layer.name}/{weight.name}:0" for weight in layer.weights]
            file.create_group(layer.name).attrs["weight_names"] = [name.encode() for name in names]
            for name, weight in zip(names, layer.weights, strict=True):
                file[layer.name][name] = np.asarray(weight)
    return path


def images(size, seed=1):
    return np.random.default_rng(seed).uniform(0, 255, (2, size, size, 3)).astype(np.float32)


def core(model, count):
    return model.get_weights()[:count]


def assert_equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize(("kind", "classes"), [("new", 0), ("old", 0), ("new", 1001), ("old", 1000), ("old", 7)])
def test_mobilenet_without_and_with_a_classifier(kind, classes, tmp_path):
    application = Recorder(APPLICATIONS.MobileNet)
    top = (
        {"include_top": True, "classes": classes}
        if classes
        else {"include_top": False, "input_shape": (64, 64, 3)}
    )
    saved = randomize(application(weights=None, **SMALL, **top))
    path = save(saved, kind, tmp_path)
    application.calls.clear()
    found = twins.read_twin(application, str(path), **SMALL)
    assert_equal(found.get_weights(), saved.get_weights())
    assert found.output.shape[1:] == ((classes,) if classes else (7, 7, 256))
    assert [(call["include_top"], call.get("classes")) for call in application.calls] == [
        (False, None),
        *([(True, classes)] if classes else []),
    ]


def test_vgg16_without_classifier_builds_none(weights):
    path = str(weights / "imagenet" / "vgg16_notop.weights.h5")
    application = Recorder(APPLICATIONS.VGG16)
    found = twins.read_twin(application, path, classifier=True)
    assert [call["include_top"] for call in application.calls] == [False]
    with h5py.File(path) as file:
        assert np.array_equal(found.get_layer("block5_conv3").kernel, file["layers/conv2d_12/vars/0"])
    assert found.output.shape == (None, 7, 7, 512)
    other = weights / "imagenet" / "mobilenet_v1_1001.weights.h5"
    with pytest.raises(DataError) as caught:
        twins.read_twin(application, other)
    assert [call["include_top"] for call in application.calls] == [False, False]
    assert str(caught.value) == (
        "weights do not fit VGG16: block1_conv1/kernel is 3x3x3x32 in the file, expected 3x3x3x64; "
        "block1_conv1/bias is missing; block1_conv2/kernel is 1x1x32x64 in the file, expected 3x3x64x64; "
        f"and 147 more: {other}"
    )


def test_mobilenet_of_1001_classes(weights):
    path = str(weights / "imagenet" / "mobilenet_v1_1001.weights.h5")
    found = twins.read_twin(APPLICATIONS.MobileNet, path)
    theirs = APPLICATIONS.MobileNet(weights=None, classes=1001)
    theirs.load_weights(path)
    assert_equal(found.get_weights(), theirs.get_weights())
    assert found.output.shape == (None, 1001)


def test_vgg16_of_the_old_format(weights, tmp_path):
    saved = twins.read_twin(APPLICATIONS.VGG16, str(weights / "imagenet" / "vgg16_notop.weights.h5"))
    path = save(saved, "old", tmp_path)
    assert_equal(twins.read_twin(APPLICATIONS.VGG16, str(path)).get_weights(), saved.get_weights())
    with h5py.File(path, "a") as file:
        del file["block4_conv1/block4_conv1/kernel:0"]
        file["block4_conv1/block4_conv1/kernel:0"] = np.zeros((3, 3, 3, 64))
        file["block2_conv2"].attrs["weight_names"] = [b"block2_conv2/kernel:0"]
    with pytest.raises(DataError) as caught:
        twins.read_twin(APPLICATIONS.VGG16, path)
    assert str(caught.value) == (
        "weights do not fit VGG16: block2_conv2/bias is missing; "
        f"block4_conv1/kernel is 3x3x3x64 in the file, expected 3x3x256x512: {path}"
    )


@pytest.mark.parametrize("kind", ["new", "old"])
def test_another_width(kind, tmp_path):
    path = save(APPLICATIONS.MobileNet(weights=None, alpha=0.5), kind, tmp_path)
    with pytest.raises(DataError) as caught:
        twins.read_twin(APPLICATIONS.MobileNet, path, **SMALL)
    assert str(caught.value) == (
        "weights do not fit MobileNet: conv1/kernel is 3x3x3x16 in the file, expected 3x3x3x8; "
        "conv1_bn/gamma is 16 in the file, expected 8; conv1_bn/beta is 16 in the file, expected 8; "
        f"and 134 more: {path}"
    )


def test_a_classifier_of_another_kind(tmp_path):
    body = auto_named(False, None, (32, 32, 3))
    x = layers.GlobalAveragePooling2D()(body.output)
    path = save(keras.Model(body.inputs[0], layers.Dense(5)(layers.Dense(9)(x))), "new", tmp_path)
    with pytest.raises(DataError) as caught:
        twins.read_twin(auto_named, path)
    places = ["dense/vars/0", "dense/vars/1", "dense_1/vars/0"]
    texts = [f"layers/{place} is not part of the network" for place in places]
    assert str(caught.value) == f"weights do not fit auto_named: {'; '.join(texts)}; and 1 more: {path}"


def test_a_classifier_that_is_nearly_right(tmp_path):
    """The differences from the network with a classifier are fewer: those are shown."""
    body = auto_named(False, None, (32, 32, 3))
    x = layers.GlobalAveragePooling2D()(body.output)
    path = save(keras.Model(body.inputs[0], layers.Dense(5)(x)), "new", tmp_path)
    with pytest.raises(DataError) as caught:
        twins.read_twin(auto_named, path)
    message = str(caught.value)
    assert message.startswith("weights do not fit auto_named: dense")
    assert message.endswith(f"/kernel is 18x5 in the file, expected 16200x5: {path}")


def test_a_file_of_too_few_layers(tmp_path):
    """They cannot be a network with a classifier: none is built, which may be large."""
    application, image = Recorder(auto_named), keras.Input((32, 32, 3))
    x = layers.Dense(1000)(layers.Conv2D(6, 3)(layers.Normalization()(image)))
    path = save(keras.Model(image, x), "new", tmp_path)
    with pytest.raises(DataError, match=r"/bias is missing; .*; and 17 more: .*model\.weights\.h5$"):
        twins.read_twin(application, path)
    assert [call["include_top"] for call in application.calls] == [False]


@pytest.mark.parametrize("kind", ["new", "old"])
@pytest.mark.parametrize("top", [False, True])
def test_layers_that_keras_names_anew(kind, top, tmp_path):
    first = randomize(auto_named(top, None, (32, 32, 3), 10))
    path = save(first, kind, tmp_path)
    second = twins.application_model(auto_named, (48, 32, 3), path)
    assert {layer.name for layer in first.layers}.isdisjoint(layer.name for layer in second.layers)
    assert second.output.shape == (None, 46, 30, 18)
    expected = auto_named(False, None, (48, 32, 3))
    expected.set_weights(core(first, len(expected.weights)))
    expected.layers[1].finalize_state()
    pixels = images(48)[:, :, :32]
    assert np.array_equal(second(pixels), expected(pixels))
    assert np.ptp(second(pixels)) > 1


def test_inception_v3_in_one_session():
    """Branches of equal shapes, in Keras' own network: none may take another's weights."""
    build, shape = APPLICATIONS.InceptionV3, (75, 75, 3)
    first = build(weights=None, classes=3, input_shape=shape)
    second = build(weights=None, include_top=False, input_shape=shape)
    assert first.layers[1].name != second.layers[1].name
    twins.copy_by_position(first, second)
    assert_equal(core(first, len(second.weights)), second.get_weights())
    pixels = images(75) / 255
    before = keras.Model(first.inputs[0], first.get_layer("mixed10").output)(pixels)
    assert np.ptp(before) > 1e-3
    assert np.array_equal(second(pixels), before)


def test_no_weights_at_all():
    application = Recorder(auto_named)
    model = twins.application_model(application, (32, 40, 3), None)
    assert model.output.shape == (None, 30, 38, 18)
    assert application.calls == [{"include_top": False, "weights": None, "input_shape": (32, 40, 3)}]


def test_copy_by_name():
    first, second = (randomize(APPLICATIONS.MobileNet(weights=None, **SMALL), seed) for seed in (0, 1))
    image = keras.Input((32, 32, 3))
    x = layers.Conv2D(8, 3, use_bias=False, name="conv1")(image)
    small = keras.Model(image, layers.Conv2D(2, 1, name="ours")(layers.BatchNormalization(name="conv1_bn")(x)))
    before = small.get_layer("ours").get_weights()
    assert twins.copy_by_name(first, small) == ["ours"]
    assert_equal(small.get_weights()[:5], first.get_weights()[:5])
    assert_equal(small.get_layer("ours").get_weights(), before)
    assert twins.copy_by_name(second, first) == []
    assert_equal(first.get_weights(), second.get_weights())


def test_copy_by_position_into_a_longer_network():
    with pytest.raises(ValueError, match="shorter"):
        twins.copy_by_position(auto_named(False, None, None), auto_named(True, None, None))


def efficientnet_file(folder):
    """Weights as Keras publishes them for EfficientNet: deviations where variances belong."""
    model = randomize(APPLICATIONS.EfficientNetB0(weights=None, include_top=False))
    model.layers[2].set_weights([np.array([0.485, 0.456, 0.406]), np.array(DEVIATIONS), np.array(0)])
    model.save_weights(folder / "e.weights.h5")
    return folder / "e.weights.h5"


def test_efficientnet_normalises_as_it_was_trained(tmp_path, monkeypatch):
    path = efficientnet_file(tmp_path)
    module = sys.modules[APPLICATIONS.EfficientNetB0.__module__]
    monkeypatch.setattr(module.file_utils, "get_file", lambda *_, **__: str(path))
    theirs = APPLICATIONS.EfficientNetB0(weights="imagenet", include_top=False, input_shape=(64, 64, 3))
    pixels = images(64)
    normalised = (pixels / 255 - [0.485, 0.456, 0.406]) / DEVIATIONS
    for weights in (str(path), "imagenet"):
        ours = twins.application_model(APPLICATIONS.EfficientNetB0, (64, 64, 3), weights)
        assert len(ours.layers) == len(theirs.layers) - 1  # a run's own weights fit, wherever they began
        start = keras.Model(ours.inputs[0], ours.layers[2].output)
        np.testing.assert_allclose(start(pixels), normalised, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(ours(pixels), theirs(pixels), rtol=1e-3)


def test_other_statistics_stay_as_they_are():
    image = keras.Input((4, 4, 3))
    model = keras.Model(image, layers.Normalization()(image))
    for variance, expected in (([0.2, 0.2, 0.2], 0.2), (DEVIATIONS, 0.229**2)):
        model.layers[1].set_weights([np.zeros(3), np.array(variance), np.array(0)])
        twins._correct_deviations(model)
        assert float(model.layers[1].get_weights()[1][0]) == pytest.approx(expected)


def published(include_top, weights, input_shape, cache):
    """An application whose weights lie where there is no network to reach them."""
    if weights == "imagenet":
        keras.utils.get_file("small.h5", "https://weights.example/keras/small.h5", cache_dir=cache)
    return auto_named(include_top, None, input_shape)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (urllib.error.URLError(OSError(-3, "Temporary failure")), "[Errno -3] Temporary failure"),
        (urllib.error.HTTPError("https://weights.example", 404, "Not Found", None, None), "404 -- Not Found"),
    ],
)
def test_weights_that_cannot_be_fetched(error, cause, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    for build in (
        lambda: twins.read_twin(published, "imagenet", True, cache=tmp_path),
        lambda: twins.application_model(published, (32, 32, 3), "imagenet", cache=tmp_path),
    ):
        with pytest.raises(EnvironmentFault) as caught:
            build()
        assert str(caught.value) == (
            f"ImageNet weights not reachable ({cause}): https://weights.example/keras/small.h5: download it "
            "elsewhere and set model.weights=/path/small.h5, or model.weights=none"
        )


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionResetError(104, "Connection reset by peer"), "[Errno 104] Connection reset by peer"),
        (OSError("truncated file: eof = 9"), "truncated file: eof = 9"),
        (
            ValueError("Incomplete or corrupted file detected. The md5"),
            "Incomplete or corrupted file detected. The md5",
        ),
    ],
)
def test_weights_that_arrive_damaged(error, reason):
    def broken(**_):
        raise error

    with pytest.raises(EnvironmentFault) as caught:
        twins.read_twin(broken, "imagenet")
    assert str(caught.value) == (
        f"ImageNet weights of broken: {reason}: delete the damaged file in Keras' cache (~/.keras/models), "
        "or set model.weights=/path/FILE or model.weights=none"
    )


def test_faults_of_another_kind_are_left_to_the_caller():
    with pytest.raises(ValueError, match="alpha can be one of"):
        twins.read_twin(APPLICATIONS.MobileNet, "imagenet", alpha=0.3)


def test_imagenet_weights_with_and_without_classifier():
    asked = []

    def application(include_top, weights, input_shape):
        asked.append((include_top, weights, input_shape))
        return randomize(auto_named(include_top, None, None if include_top else input_shape))

    assert twins.read_twin(application, "imagenet", classifier=True).output.shape == (None, 1000)
    assert twins.read_twin(application, "imagenet").output.shape == (None, 222, 222, 18)
    found = twins.application_model(application, (32, 32, 3), "imagenet")
    assert_equal(found.get_weights(), randomize(auto_named(False, None, None)).get_weights())
    square = (224, 224, 3)
    assert asked[:2] == [(True, "imagenet", None), (False, "imagenet", square)]
    assert asked[2:] == [(False, None, (32, 32, 3)), (False, "imagenet", square)]
