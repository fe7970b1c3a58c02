"""What is particular to VGG16, the MobileNets and TinySSD; the harness has what all share."""

import keras
import numpy as np
import pytest
from backbone_cases import make_config, random_batch

from ssd_tf import config as configs
from ssd_tf.api import build
from ssd_tf.errors import ConfigError, DataError
from ssd_tf.models import layers, registry
from ssd_tf.models.detector import all_layers
from ssd_tf.models.extractor import feature_extractor
from ssd_tf.models.mobilenet import mobilenet_v1, mobilenet_v2
from ssd_tf.models.vgg import decimate, vgg16
from ssd_tf.training import trainer
from ssd_tf.training.losses import make_losses

STANDARD = {300: (38, 19, 10, 5, 3, 1), 320: (40, 20, 10, 5, 3, 1), 512: (64, 32, 16, 8, 4, 2, 1)}
SIZES = {
    "vgg16": STANDARD,
    "mobilenet_v1": STANDARD,
    "mobilenet_v2": STANDARD,
    "tiny_ssd": {300: (37, 18, 9, 4, 2, 1), 320: (39, 19, 9, 4, 2, 1), 512: (63, 31, 15, 7, 4, 2)},
}
CHANNELS = {
    "vgg16": (512, 1024, 512, 256, 256, 256, 256),
    "mobilenet_v1": (256, 512, 1024, 512, 256, 256, 256),
    "mobilenet_v2": (192, 576, 1280, 512, 256, 256, 256),
    "tiny_ssd": (173, 83, 101, 85, 46, 85),
}


@pytest.mark.parametrize("backbone", SIZES)
@pytest.mark.parametrize("side", [300, 320, 512])
def test_map_sizes_and_channels(backbone, side):
    extractor = feature_extractor(make_config(backbone, side).model)
    expected = [
        (None, cells, cells, channels)
        for cells, channels in zip(SIZES[backbone][side], CHANNELS[backbone], strict=False)
    ]
    assert [output.shape for output in extractor.outputs] == expected


@pytest.mark.parametrize(
    ("backbone", "channels"),
    [
        ("vgg16", (512, 1024, 512, 256, 256, 256)),
        ("mobilenet_v1", (256, 512, 512, 256, 256, 256)),
        ("mobilenet_v2", (32, 96, 512, 256, 256, 256)),
    ],
)
def test_seed_layout(backbone, channels):
    """The maps of the SSD-TensorFlow family of networks, and the same number of anchors from all."""
    config = make_config(backbone, 300, model__layout="seed")
    extractor = feature_extractor(config.model)
    assert [output.shape[1:] for output in extractor.outputs] == [
        (cells, cells, count) for cells, count in zip(STANDARD[300], channels, strict=True)
    ]
    assert len(build.build_anchors(config)) == 8732


@pytest.mark.parametrize(("side", "count"), [(128, 1524), (300, 8732), (320, 9590), (512, 24564), (1024, 98292)])
def test_number_of_anchors(side, count):
    assert len(build.build_anchors(make_config("mobilenet_v1", side))) == count


def test_maps_of_an_image_that_is_not_square():
    config = configs.replace(make_config("mobilenet_v2"), model__image_size=(300, 512))
    assert build.build_map_sizes(config) == ((38, 64), (19, 32), (10, 16), (5, 8), (3, 6), (1, 4))
    assert len(build.build_anchors(config)) == 14664


def batch_norms(model):
    return [layer for layer in all_layers(model) if isinstance(layer, keras.layers.BatchNormalization)]


@pytest.mark.parametrize(
    ("backbone", "side", "frozen"), [("mobilenet_v2", 96, True), ("tiny_ssd", 192, True), ("tiny_ssd", 192, False)]
)
def test_frozen_batch_norms_stay_as_they_are(backbone, side, frozen):
    leaves = {"train__steps": 10, "train__warmup": 0.0, "train__freeze_batch_norm": frozen}
    config = make_config(backbone, side, model__extras_norm="bn", **leaves)
    detector = build.build(config)
    trainer.compile_detector(detector.model, make_losses(config.loss, detector.anchors), config.train)
    detector.model.run_eagerly = True  # one step: tracing would take longer
    norms = batch_norms(detector.model)
    before = [layer.get_weights() for layer in norms]
    detector.model.train_on_batch(*random_batch(len(detector.anchors), side, batch=2))
    for layer, old in zip(norms, before, strict=True):
        backbone_layer = registry.layer_group(layer) == "backbone"
        same = all(np.array_equal(a, b) for a, b in zip(old, layer.get_weights(), strict=True))
        assert same == (frozen and backbone_layer), layer.name
        assert layer.momentum == config.train.batch_norm_momentum
    assert {registry.layer_group(layer) for layer in norms} == {"backbone", "extras"}


def test_number_of_weights():
    voc = configs.replace(make_config("vgg16", 300), model__num_classes=20, anchors__preset="ssd300_voc")
    assert build.build(voc).model.count_params() == 26_285_486
    twin = keras.applications.MobileNetV2(weights=None, include_top=False, input_shape=(96, 96, 3))
    assert mobilenet_v2((96, 96, 3), None).count_params() == twin.count_params() == 2_257_984


def test_tiny_ssd_is_as_large_as_its_table():
    """The paper's table 1 and heads of 4, 6, 6, 6, 6, 4 anchors for 21 classes, kernels alone, by hand."""
    leaves = {"anchors__ratios": ((2.0,), *((2.0, 3.0),) * 4, (2.0,))}
    config = configs.replace(make_config("tiny_ssd", 300, **leaves), model__num_classes=20)
    detector = build.build(config)
    convolutions = [layer for layer in all_layers(detector.model) if isinstance(layer, keras.layers.Conv2D)]
    sizes = {"heads": 0, "extras": 0, "backbone": 0}
    for layer in convolutions:
        sizes[registry.layer_group(layer)] += layer.kernel.value.numpy().size
    assert sizes == {"backbone": 402_279, "extras": 70_054, "heads": 657_450}
    assert detector.anchors.shape == (8030, 4)  # as published


def probe(model, names, image):
    """The outputs of some layers of a model, NumPy arrays."""
    outputs = keras.Model(model.inputs[0], [model.get_layer(name).output for name in names])(image)
    return [np.asarray(output) for output in outputs]


def test_mobilenet_v2_is_keras_own(weights):
    path = weights / "coco_ssdlite_mobilenet_v2" / "keras_mobilenetv2_300_notop_from_coco.weights.h5"
    ours = mobilenet_v2((224, 224, 3), str(path))
    theirs = keras.applications.MobileNetV2(include_top=False, weights=str(path), input_shape=(224, 224, 3))
    image = np.random.default_rng(0).uniform(-1, 1, (1, 224, 224, 3)).astype(np.float32)
    taps = registry.get_backbone("mobilenet_v2").layouts["default"].taps
    for found, expected in zip(probe(ours, taps, image), probe(theirs, taps, image), strict=True):
        assert expected.max() > 1
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_mobilenet_v1_is_keras_own_on_even_maps(weights):
    """The file has a classifier of 1001 classes, background first, as TF-slim's networks."""
    path = str(weights / "imagenet" / "mobilenet_v1_1001.weights.h5")
    ours = mobilenet_v1((224, 224, 3), path)
    theirs = keras.applications.MobileNet(weights=path, classes=1001)
    image = np.random.default_rng(0).uniform(-1, 1, (1, 224, 224, 3)).astype(np.float32)
    taps = registry.get_backbone("mobilenet_v1").layouts["default"].taps
    for found, expected in zip(probe(ours, taps, image), probe(theirs, taps, image), strict=True):
        assert expected.max() > 1
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("build_ours", "application", "width"),
    [
        (mobilenet_v1, keras.applications.MobileNet, 0.25),
        (mobilenet_v1, keras.applications.MobileNet, 0.75),
        (mobilenet_v2, keras.applications.MobileNetV2, 0.35),
        (mobilenet_v2, keras.applications.MobileNetV2, 1.4),
    ],
)
def test_width_is_keras_alpha(build_ours, application, width):
    ours = build_ours((96, 96, 3), None, width=width)
    theirs = application(include_top=False, weights=None, input_shape=(96, 96, 3), alpha=width)
    shapes = [{w.path: tuple(w.shape) for w in model.weights} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("backbone", "option", "value"),
    [
        ("vgg16", "width", 0.5),
        ("vgg16", "padding", "symmetric"),
        ("vgg16", "activation", "relu6"),
        ("vgg16", "reduced_tail", True),
        ("mobilenet_v1", "tap_norm", "bn"),
        ("mobilenet_v3_large", "activation", "relu"),
        ("tiny_ssd", "padding", "symmetric"),
    ],
)
def test_option_of_a_backbone_that_does_not_have_it(backbone, option, value):
    with pytest.raises(ConfigError) as error:
        feature_extractor(make_config(backbone, **{f"model__{option}": value}).model)
    assert str(error.value) == f"model.{option}={value}: {backbone} has no such option"


def test_vgg16_is_keras_own(weights):
    path = str(weights / "imagenet" / "vgg16_notop.weights.h5")
    ours = vgg16((96, 96, 3), path)
    theirs = keras.applications.VGG16(include_top=False, weights=path, input_shape=(96, 96, 3))
    image = np.random.default_rng(0).uniform(-120, 130, (1, 96, 96, 3)).astype(np.float32)
    (found, _), (expected, _) = (probe(model, ("block4_conv3", "block5_conv3"), image) for model in (ours, theirs))
    np.testing.assert_allclose(found, expected, atol=1e-4 * expected.max())
    biases = [model.get_layer("block5_conv3").bias.value.numpy() for model in (ours, theirs)]
    assert np.array_equal(*biases)
    assert np.any(biases[0])
    assert not np.any(ours.get_layer("fc6").bias.value)  # the file has no classifier: made anew


def test_decimate_keeps_every_nth():
    kernel = np.arange(7 * 7 * 2 * 8, dtype=np.float32).reshape(7, 7, 2, 8)
    bias = np.arange(8, dtype=np.float32)
    thin, thin_bias = decimate(kernel, bias, (3, 3, 1, 4))
    assert thin.shape == (3, 3, 2, 2)
    assert thin_bias.tolist() == [0, 4]
    for row in range(3):
        for column in range(3):
            for channel in range(2):
                for output in range(2):
                    assert thin[row, column, channel, output] == kernel[3 * row, 3 * column, channel, 4 * output]
    square, _ = decimate(np.arange(64.0).reshape(1, 1, 8, 8), bias, (1, 1, 4, 4))
    assert square[0, 0].tolist() == [[0, 4], [32, 36]]


@pytest.mark.parametrize("backbone", ["vgg16", "tiny_ssd", "resnet50"])
def test_weights_file_that_is_not_there(backbone, tmp_path):
    settings = configs.replace(make_config(backbone), model__weights=str(tmp_path / "no.weights.h5")).model
    with pytest.raises(DataError, match=r"model\.weights: no such file: .*no\.weights\.h5"):
        feature_extractor(settings)
    assert feature_extractor(settings, load_weights=False).outputs  # reads nothing


@pytest.mark.parametrize(
    ("backbone", "first"),
    [
        ("mobilenet_v2", "Conv1/kernel is missing"),
        ("vgg16", "block1_conv1/kernel is missing"),
        ("tiny_ssd", "conv1/kernel is missing"),
    ],
)
def test_weights_file_that_does_not_fit(backbone, first, tmp_path):
    path = tmp_path / "other.weights.h5"
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save_weights(path)
    settings = configs.replace(make_config(backbone), model__weights=str(path)).model
    with pytest.raises(DataError, match=rf"^weights do not fit .*: {first}; .* and \d+ more: .*other") as caught:
        feature_extractor(settings)
    assert "\n" not in str(caught.value)


def test_tiny_ssd_has_no_imagenet_weights():
    settings = configs.replace(make_config("tiny_ssd"), model__weights="imagenet").model
    with pytest.raises(ConfigError, match=r"set model\.weights=none"):
        feature_extractor(settings)


def test_image_too_small_for_the_backbone():
    with pytest.raises(ConfigError, match="tiny_ssd cannot be built at 32x32"):
        feature_extractor(make_config("tiny_ssd", 32).model)


def test_l2_normalize_by_hand():
    layer = layers.L2Normalize()
    features = np.array([[[[3.0, 4.0], [0.0, 0.0]]]], np.float32)
    np.testing.assert_allclose(layer(features), [[[[12.0, 16.0], [0.0, 0.0]]]], rtol=1e-6)
    layer.gamma.assign([1.0, 10.0])
    np.testing.assert_allclose(layer(features), [[[[0.6, 8.0], [0.0, 0.0]]]], rtol=1e-6)


def test_l2_normalize_does_not_overflow_in_half_precision():
    layer = layers.L2Normalize()
    half = np.full((1, 1, 1, 512), 200, np.float16)  # the sum of squares is far beyond 65504
    np.testing.assert_allclose(layer(half), np.full((1, 1, 1, 512), 20 / np.sqrt(512)), rtol=1e-5)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("none", (255, 0, 0)),
        ("tf", (1, -1, -1)),
        ("torch", (131.325 / 58.395, -116.28 / 57.12, -103.53 / 57.375)),
        ("caffe", (-103.939, -116.779, 131.32)),  # blue, green, red
    ],
)
def test_preprocessing_of_pure_red(mode, expected):
    red = np.zeros((1, 2, 2, 3), np.uint8)
    red[..., 0] = 255
    pixels = layers.make_preprocess(mode)(red)
    np.testing.assert_allclose(pixels, np.broadcast_to(np.float32(expected), (1, 2, 2, 3)), atol=1e-5)


def test_custom_preprocessing_of_pure_red():
    red = np.uint8([[[[255, 0, 0]]]])
    pixels = layers.make_preprocess("custom", (127, 117, 104), 1 / 128)(red)
    np.testing.assert_allclose(pixels, [[[[1.0, -117 / 128, -104 / 128]]]], rtol=1e-6)


def ceil_pool(features):
    """Caffe's 3x3 max pool of stride 2: sizes round up, windows are cut at the border."""
    h, w = (int(np.ceil((side - 3) / 2)) + 1 for side in features.shape[:2])
    rows = [[features[2 * y : 2 * y + 3, 2 * x : 2 * x + 3].max((0, 1)) for x in range(w)] for y in range(h)]
    return np.array(rows)


@pytest.mark.parametrize("image_size", [(300, 300), (200, 160)])
def test_tiny_ssd_pools_as_caffe_does(image_size):
    model = registry.get_backbone("tiny_ssd").build((*image_size, 3), None)
    pairs = [
        ("conv1_relu", "pool1"),
        ("fire2", "pool3"),
        ("fire4", "pool5"),
        ("fire8", "pool9"),
        ("fire9", "pool10"),
    ]
    names = [name for pair in pairs for name in pair]
    image = np.random.default_rng(0).uniform(-1, 1, (1, *image_size, 3)).astype(np.float32)
    values = dict(zip(names, (value[0] for value in probe(model, names, image)), strict=True))
    for before, after in pairs:
        assert np.array_equal(ceil_pool(values[before]), values[after]), after
    if image_size == (300, 300):
        assert [values[after].shape[0] for _, after in pairs] == [74, 37, 18, 9, 4]
