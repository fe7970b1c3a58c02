"""Every registered backbone through one harness, then what is particular to each."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from ssd_tf import config as configs
from ssd_tf.api import build
from ssd_tf.errors import ConfigError, DataError
from ssd_tf.models import layers, registry
from ssd_tf.models.detector import all_layers
from ssd_tf.models.mobilenet import mobilenet_v2
from ssd_tf.models.vgg import decimate, vgg16
from ssd_tf.training import trainer

BACKBONES = registry.list_backbones()
NUM_CLASSES = 3
STANDARD = {300: (38, 19, 10, 5, 3, 1), 320: (40, 20, 10, 5, 3, 1), 512: (64, 32, 16, 8, 4, 2, 1)}
SIZES = {
    "vgg16": STANDARD,
    "mobilenet_v2": STANDARD,
    "tiny_ssd": {300: (37, 18, 9, 4, 2, 1), 320: (39, 19, 9, 4, 2, 1), 512: (63, 31, 15, 7, 4, 2)},
}
CHANNELS = {
    "vgg16": (512, 1024, 512, 256, 256, 256, 256),
    "mobilenet_v2": (192, 576, 1280, 512, 256, 256, 256),
    "tiny_ssd": (173, 83, 101, 85, 46, 85),
}


def make_config(backbone, side=128, **leaves):
    """A Config of a small detector with no weights to read."""
    return configs.replace(
        configs.Config(),
        model__backbone=backbone,
        model__image_size=(side, side),
        model__num_classes=NUM_CLASSES,
        model__weights="none",
        **leaves,
    )


def random_batch(num_anchors, side, batch=4, seed=0):
    """Noise images, and targets with one positive in five and one ignored anchor in ten."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (batch, side, side, 3), np.uint8)
    kind = rng.random((batch, num_anchors))
    kind[:, -1] = 0  # the coarsest map must learn something too, and it has the fewest anchors
    labels = np.where(kind < 0.2, rng.integers(1, NUM_CLASSES + 1, kind.shape), np.where(kind > 0.9, -1, 0))
    positive = (labels > 0).astype(np.float32)[..., None]
    deltas = rng.normal(0, 2, (batch, num_anchors, 4)).astype(np.float32)
    targets = {
        "class_logits": labels.astype(np.int32),
        "box_deltas": np.concatenate([deltas * positive, positive], axis=-1),
    }
    return images, targets, np.full(batch, batch / positive.sum(), np.float32)


def batch_norms(model):
    return [layer for layer in all_layers(model) if isinstance(layer, keras.layers.BatchNormalization)]


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("side", [300, 320, 512])
def test_map_sizes_and_channels(backbone, side):
    extractor = registry.feature_extractor(make_config(backbone, side).model)
    expected = [
        (None, cells, cells, channels)
        for cells, channels in zip(SIZES[backbone][side], CHANNELS[backbone], strict=False)
    ]
    assert [output.shape for output in extractor.outputs] == expected


@pytest.mark.parametrize(("backbone", "count"), [("vgg16", 8732), ("mobilenet_v2", 8732), ("tiny_ssd", 8022)])
def test_one_output_row_per_anchor(backbone, count):
    detector = build.build(make_config(backbone, 300))
    assert detector.anchors.shape == (count, 4)
    assert {key: value.shape for key, value in detector.model.output.items()} == {
        "class_logits": (None, count, NUM_CLASSES + 1),
        "box_deltas": (None, count, 4),
    }
    assert np.array_equal(build.build_anchors(make_config(backbone, 300)), detector.anchors)


def test_maps_of_an_image_that_is_not_square():
    settings = configs.replace(make_config("mobilenet_v2"), model__image_size=(300, 512)).model
    sizes = build.map_sizes(registry.feature_extractor(settings))
    assert sizes == ((38, 64), (19, 32), (10, 16), (5, 8), (3, 6), (1, 4))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_rows_stand_where_their_anchors_stand(backbone):
    """A bright spot in one corner moves the first level's rows of that corner most."""
    keras.utils.set_random_seed(2)
    config = make_config(backbone, 192)
    detector = build.build(config)
    image = np.zeros((1, 192, 192, 3), np.uint8)
    spot = image.copy()
    spot[:, 136:152, 40:56] = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3))
    change = np.abs(np.subtract(*(detector.model(x, training=False)["box_deltas"] for x in (spot, image))))[0]
    cells = build.map_sizes(registry.feature_extractor(config.model, load_weights=False))[0]
    level = change[: cells[0] * cells[1] * 4].sum(axis=1)
    anchors = detector.anchors[: len(level)]
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    middle = (centres * level[:, None]).sum(axis=0) / level.sum()
    np.testing.assert_allclose(middle, [144 / 192, 48 / 192], atol=0.06)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_weight_gets_a_gradient(backbone):
    """But for shifts that feed another batch norm through a 1x1 convolution: it takes constants away again."""
    keras.utils.set_random_seed(0)
    config = make_config(backbone, 160)
    detector = build.build(config)
    images, targets, weight = random_batch(len(detector.anchors), 160)
    losses = build.make_losses(config.loss)
    with tf.GradientTape() as tape:
        outputs = detector.model(images, training=True)
        loss = sum(losses[key](targets[key], outputs[key], sample_weight=weight) for key in losses)
    weights = detector.model.trainable_weights
    assert np.isfinite(loss)
    for variable, gradient in zip(weights, tape.gradient(loss, [w.value for w in weights]), strict=True):
        assert gradient is not None, variable.path
        assert np.all(np.isfinite(gradient)), variable.path
        shift_without_effect = variable.path.endswith("project_BN/beta")
        assert (np.max(np.abs(gradient)) > 1e-6) != shift_without_effect, variable.path


@pytest.mark.parametrize("backbone", BACKBONES)
def test_saved_weights_give_equal_outputs(backbone, tmp_path):
    config = make_config(backbone)
    first, second = build.build(config).model, build.build(config).model
    images = random_batch(1, 128, batch=2)[0]
    before = first(images)
    assert not np.array_equal(before["class_logits"], second(images)["class_logits"])
    first.save_weights(tmp_path / "a.weights.h5")
    second.load_weights(tmp_path / "a.weights.h5")
    after = second(images)
    for key, value in before.items():
        assert np.array_equal(after[key], value), key


@pytest.mark.parametrize("backbone", BACKBONES)
def test_outputs_are_float32_under_mixed_precision(backbone):
    config = make_config(backbone)
    keras.utils.set_random_seed(1)
    whole, mixed = build.build(config).model, build.build(config, precision="mixed_bfloat16").model
    assert keras.config.dtype_policy().name == "float32"
    convolutions = [layer for layer in all_layers(mixed) if isinstance(layer, keras.layers.Conv2D)]
    kinds = {layer.compute_dtype for layer in convolutions if registry.layer_group(layer) == "backbone"}
    assert kinds == {"bfloat16"}
    mixed.set_weights(whole.get_weights())
    images = random_batch(1, 128, batch=2)[0]
    expected = whole(images)
    for key, value in mixed(images).items():
        assert value.dtype == np.float32
        # Arithmetic in bfloat16 (8 bits) gives other numbers, but near ones.
        difference = np.max(np.abs(value - expected[key]))
        assert 0 < difference < 0.1 * np.max(np.abs(expected[key])), key


@pytest.mark.parametrize("backbone", BACKBONES)
def test_built_twice_taps_the_same_layers(backbone):
    first, second = (build.build(make_config(backbone)).model for _ in range(2))
    assert [w.path for w in first.weights] == [w.path for w in second.weights]
    taps = [
        [output._keras_history.operation.name for output in model.get_layer("backbone").outputs]
        for model in (first, second)
    ]
    assert taps[0] == taps[1] == list(registry.get_backbone(backbone).taps)


@pytest.mark.parametrize(
    ("backbone", "side", "frozen"), [("mobilenet_v2", 96, True), ("tiny_ssd", 192, True), ("tiny_ssd", 192, False)]
)
def test_frozen_batch_norms_stay_as_they_are(backbone, side, frozen):
    leaves = {"train__steps": 10, "train__warmup": 0.0, "train__freeze_batch_norm": frozen}
    config = make_config(backbone, side, model__extras_norm="bn", **leaves)
    detector = build.build(config)
    trainer.compile_detector(detector.model, build.make_losses(config.loss), config.train)
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
    taps = registry.get_backbone("mobilenet_v2").taps
    for found, expected in zip(probe(ours, taps, image), probe(theirs, taps, image), strict=True):
        assert expected.max() > 1
        np.testing.assert_allclose(found, expected, atol=1e-4)


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


@pytest.mark.parametrize("backbone", BACKBONES)
def test_weights_file_that_is_not_there(backbone, tmp_path):
    settings = configs.replace(make_config(backbone), model__weights=str(tmp_path / "no.weights.h5")).model
    with pytest.raises(DataError, match=r"model\.weights: no such file: .*no\.weights\.h5"):
        registry.feature_extractor(settings)
    assert registry.feature_extractor(settings, load_weights=False).outputs  # reads nothing


@pytest.mark.parametrize("backbone", ["mobilenet_v2", "tiny_ssd"])
def test_weights_file_that_does_not_fit(backbone, tmp_path):
    path = tmp_path / "other.weights.h5"
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save_weights(path)
    settings = configs.replace(make_config(backbone), model__weights=str(path)).model
    with pytest.raises(DataError, match=rf"other\.weights\.h5 does not fit {backbone}: ") as caught:
        registry.feature_extractor(settings)
    assert "\n" not in str(caught.value)


def test_weights_file_that_is_no_weights_file(tmp_path):
    path = tmp_path / "text.weights.h5"
    path.write_text("not a weights file")
    settings = configs.replace(make_config("tiny_ssd"), model__weights=str(path)).model
    with pytest.raises(DataError, match=r"text\.weights\.h5 does not fit tiny_ssd"):
        registry.feature_extractor(settings)


def test_tiny_ssd_has_no_imagenet_weights():
    settings = configs.replace(make_config("tiny_ssd"), model__weights="imagenet").model
    with pytest.raises(ConfigError, match=r"set model\.weights=none"):
        registry.feature_extractor(settings)


def test_image_too_small_for_the_backbone():
    with pytest.raises(ConfigError, match="tiny_ssd cannot be built at 32x32"):
        registry.feature_extractor(make_config("tiny_ssd", 32).model)


def test_number_of_levels():
    settings = make_config("mobilenet_v2", 300, model__levels=4).model
    assert build.map_sizes(registry.feature_extractor(settings)) == ((38, 38), (19, 19), (10, 10), (5, 5))
    settings = make_config("mobilenet_v2", 300, model__levels=9).model
    with pytest.raises(ConfigError, match=r"model\.levels=9: mobilenet_v2 at 300x300 has 6 levels"):
        registry.feature_extractor(settings)


@pytest.fixture
def fresh_registry(monkeypatch):
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(registry, "_BACKBONES", dict(registry._BACKBONES))


def small_network(image_shape, weights):
    """Three convolutions of stride 2, named fine, middle and coarse."""
    image = x = keras.Input(image_shape)
    for name, filters in (("fine", 4), ("middle", 6), ("coarse", 8)):
        x = keras.layers.Conv2D(filters, 3, strides=2, padding="same", name=name)(x)
    return keras.Model(image, x)


@pytest.mark.usefixtures("fresh_registry")
def test_registered_backbone_is_listed_and_built():
    assert "small" not in registry.list_backbones()
    registry.register_backbone("small", taps=("fine", "coarse"))(small_network)
    assert "small" in registry.list_backbones()
    extractor = registry.feature_extractor(make_config("small", 64).model)
    # 64 -> 32 (fine), 8 (coarse), then the standard rule: 4, 2, 1.
    assert [output.shape[1:] for output in extractor.outputs] == [
        (32, 32, 4),
        (8, 8, 8),
        (4, 4, 512),
        (2, 2, 256),
        (1, 1, 256),
    ]


@pytest.mark.usefixtures("fresh_registry")
def test_names_are_taken_once():
    registry.register_backbone("small", taps=("fine",))(small_network)
    with pytest.raises(ConfigError, match="'small' is registered already"):
        registry.register_backbone("small", taps=("fine",))
    with pytest.raises(ConfigError, match="preprocessing 'coffee' is none of"):
        registry.register_backbone("other", taps=("fine",), preprocessing="coffee")


def test_unknown_backbone_names_a_near_one():
    with pytest.raises(ConfigError, match=r"unknown backbone 'mobilnet_v2' \(did you mean mobilenet_v2\?\)"):
        registry.get_backbone("mobilnet_v2")


@pytest.mark.usefixtures("fresh_registry")
def test_unknown_tap_names_a_near_one():
    registry.register_backbone("small", taps=("fine", "corse"))(small_network)
    with pytest.raises(ConfigError, match=r"'small' has no layer 'corse' \(did you mean coarse\?\)"):
        registry.feature_extractor(make_config("small", 64).model)


@pytest.mark.usefixtures("fresh_registry")
def test_integer_taps_count_layers():
    registry.register_backbone("small", taps=(1, -1))(small_network)  # 0 is the input
    extractor = registry.feature_extractor(make_config("small", 64).model)
    assert [output.shape[-1] for output in extractor.outputs[:2]] == [4, 8]
    registry.register_backbone("far", taps=(99,))(small_network)
    with pytest.raises(ConfigError, match="'far' has no layer 99"):
        registry.feature_extractor(make_config("far", 64).model)


@pytest.mark.usefixtures("fresh_registry")
def test_taps_out_of_order_are_refused():
    registry.register_backbone("small", taps=("coarse", "fine"))(small_network)
    with pytest.raises(ConfigError, match=r"taps out of order: a \(32, 32\) map follows a \(8, 8\) one"):
        registry.feature_extractor(make_config("small", 64).model)


@pytest.mark.usefixtures("fresh_registry")
def test_listed_extras_replace_the_rule():
    extras = (layers.Extra(3, 5), layers.Extra(3, 7))
    registry.register_backbone("small", taps=("coarse",), extras=extras)(small_network)
    extractor = registry.feature_extractor(make_config("small", 64).model)
    assert [output.shape[1:] for output in extractor.outputs] == [(8, 8, 8), (4, 4, 5), (2, 2, 7)]


@pytest.mark.usefixtures("fresh_registry")
def test_chain_of_a_recipe_replaces_the_rule_and_the_backbones_own():
    registry.register_backbone("small", taps=("coarse",))(small_network)
    registry.register_backbone("listed", taps=("coarse",), extras=(layers.Extra(3, 5),))(small_network)
    chain = ((2, 6, 3, 2, 1), (3, 7, 4, 1, 1), (4, 9, 3, 1, 0), (1, 10, 1, 1, 0))
    for backbone in ("small", "listed"):
        settings = configs.replace(make_config(backbone, 64), model__extras_chain=chain).model
        extractor = registry.feature_extractor(settings)
        maps = [(8, 8, 8), (4, 4, 6), (3, 3, 7), (1, 1, 9), (1, 1, 10)]
        assert [output.shape[1:] for output in extractor.outputs] == maps
        kernels = [
            extractor.get_layer(f"extra_{i}{part}").kernel.shape for i in (1, 2) for part in ("_reduce", "")
        ]
        assert kernels == [(1, 1, 8, 2), (3, 3, 2, 6), (1, 1, 6, 3), (4, 4, 3, 7)]
        fewer = registry.feature_extractor(dataclasses.replace(settings, levels=2))
        assert [output.shape[1:] for output in fewer.outputs] == maps[:2]
        with pytest.raises(ConfigError, match=r"model\.levels=6: .* at 64x64 has 5 levels"):
            registry.feature_extractor(dataclasses.replace(settings, levels=6))


def test_chain_of_separable_extras():
    chain, extras = ((16, 24, 3, 2, 1), (8, 12, 2, 1, 0)), {"model__extras": "separable"}
    config = make_config("mobilenet_v2", 96, model__extras_chain=chain, **extras)
    extractor = registry.feature_extractor(config.model)
    assert [output.shape[1:] for output in extractor.outputs[3:]] == [(2, 2, 24), (1, 1, 12)]
    assert extractor.get_layer("extra_2_depthwise").kernel.shape == (2, 2, 8, 1)


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        (((2, 4, 3, 2, 1), (2, 4, 4, 1, 0)), "entry 2: kernel 4 does not fit a 2x2 map with padding 0"),
        (((2, 4, 9, 1, 2),), "entry 1: kernel 9 does not fit a 4x4 map with padding 2"),
        (((2, 4, 3, 1, 3),), "entry 1: makes a 4x4 map larger, 8x8; maps go from fine to coarse"),
    ],
)
def test_chain_that_does_not_fit_the_maps(chain, message):
    config = make_config("mobilenet_v2", 128, model__extras_chain=chain)
    with pytest.raises(ConfigError) as error:
        registry.feature_extractor(config.model, load_weights=False)
    assert str(error.value) == f"model.extras_chain: {message}"


def test_chain_is_checked_on_both_sides_of_a_map():
    settings = make_config("mobilenet_v2", model__extras_chain=((2, 4, 4, 1, 0),)).model
    for size, shape in (((128, 96), "4x3"), ((96, 128), "3x4")):
        with pytest.raises(ConfigError, match=f"kernel 4 does not fit a {shape} map"):
            registry.feature_extractor(dataclasses.replace(settings, image_size=size), load_weights=False)


def test_layer_groups():
    groups = {}
    for layer in all_layers(build.build(make_config("vgg16")).model):
        if layer.weights:
            groups.setdefault(registry.layer_group(layer), set()).add(layer.name)
    assert groups["neck"] == {"neck_block4_conv3"}
    assert groups["extras"] == {f"extra_{i}{part}" for i in (1, 2, 3) for part in ("", "_reduce")}
    assert groups["heads"] == {f"head_{i}_{key}" for i in range(1, 6) for key in ("class_logits", "box_deltas")}
    convolutions = {f"block{b}_conv{c}" for b, n in enumerate((2, 2, 3, 3, 3), 1) for c in range(1, n + 1)}
    assert groups["backbone"] == convolutions | {"fc6", "fc7"}


@pytest.mark.parametrize("chain", [(19, 10, 5, 3, 1), (32, 16, 8, 4, 2, 1), (8, 4, 2, 1)])
def test_next_extra_follows_the_rule(chain):
    sizes = [chain[0]]
    while extra := layers.next_extra((sizes[-1], sizes[-1]), len(sizes) - 1):
        assert extra.channels == 2 * extra.reduce == (512 if len(sizes) == 1 else 256)
        sizes.append((sizes[-1] + 2 * extra.padding - extra.kernel) // extra.stride + 1)
    assert tuple(sizes) == chain


def test_next_extra_looks_at_the_shorter_side():
    assert layers.next_extra((5, 8), 1) == layers.Extra(128, 256, stride=1, padding=0)
    assert layers.next_extra((6, 40), 0) == layers.Extra(256, 512, stride=2, padding=1)
    assert layers.next_extra((2, 4), 1) == layers.Extra(128, 256, kernel=4, stride=1, padding=1)
    assert layers.next_extra((1, 4), 1) is None


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
