"""Options that networks trained elsewhere need: torch's padding, activations, heads, background columns, norms."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from backbone_cases import make_config

from ssd_tf.api import build
from ssd_tf.errors import ConfigError
from ssd_tf.models import detector, heads, layers, registry
from ssd_tf.models.extractor import feature_extractor

PADDED = {"mobilenet_v1": 5, "mobilenet_v2": 5, "mobilenet_v3_large": 5}  # convolutions with a stride


def uniform(shape, low=-1.0, high=1.0):
    return np.random.default_rng(3).uniform(low, high, shape).astype(np.float32)


def make_network(backbone, size, seed=0, **options):
    """A backbone with statistics at which its maps neither die nor grow."""
    keras.utils.set_random_seed(seed)
    network = registry.get_backbone(backbone).build((*size, 3), None, **options)
    generator = np.random.default_rng(seed)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([generator.uniform(0.5, 1.5, weight.shape) for weight in layer.get_weights()])
    return network


def convolve_as_torch(x, kernel, stride, depthwise):
    """Every window by hand: half the kernel of zeros on every side, from the first row and column on."""
    half = kernel.shape[0] // 2
    x = np.pad(x, ((0, 0), (half, half), (half, half), (0, 0)))
    rows, columns = ((side - kernel.shape[0]) // stride + 1 for side in x.shape[1:3])
    places = []
    for row in range(rows):
        for column in range(columns):
            window = x[:, row * stride :, column * stride :][:, : kernel.shape[0], : kernel.shape[1]]
            if depthwise:
                places.append(np.einsum("bijc,ijc->bc", window, kernel[..., 0]))
            else:
                places.append(np.einsum("bijc,ijcd->bd", window, kernel))
    return np.stack(places, axis=1).reshape(len(x), rows, columns, -1)


@pytest.mark.parametrize("backbone", PADDED)
@pytest.mark.parametrize("size", [(64, 96), (70, 33)])
def test_symmetric_padding_is_torchs(backbone, size):
    network = make_network(backbone, size, padding="symmetric")
    convolutions = [layer for layer in network.layers if isinstance(layer, keras.layers.DepthwiseConv2D)]
    convolutions += [layer for layer in network.layers if layer.name in ("conv1", "Conv1", "conv")]
    strided = [layer for layer in convolutions if layer.strides == (2, 2)]
    assert len(strided) == PADDED[backbone]
    kernels = {layer.kernel_size[0] for layer in convolutions}
    assert kernels == ({3, 5} if backbone == "mobilenet_v3_large" else {3})
    checked = strided + [layer for layer in convolutions if layer not in strided][-1:]
    before = [_source(layer.input, layer in strided) for layer in checked]
    image = uniform((1, *size, 3))
    values = keras.Model(network.inputs[0], [before, [layer.output for layer in checked]])(image)
    for layer, x, found in zip(checked, *values, strict=True):
        depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
        expected = convolve_as_torch(np.asarray(x), layer.kernel.numpy(), layer.strides[0], depthwise)
        np.testing.assert_allclose(found, expected, atol=1e-5 * max(np.abs(expected).max(), 1), err_msg=layer.name)


def _source(tensor, padded):
    """What a convolution reads, ahead of its padding."""
    layer = tensor._keras_history.operation
    assert isinstance(layer, keras.layers.ZeroPadding2D) == padded
    return layer.input if padded else tensor


@pytest.mark.parametrize("backbone", PADDED)
def test_paddings_are_equal_on_odd_maps(backbone):
    """There "same" too puts a zero on every side; the weights and the taps have equal names."""
    taps = registry.get_backbone(backbone).layouts["default"].taps
    outputs = []
    for padding in ("same", "symmetric"):
        network = make_network(backbone, (65, 97), padding=padding)
        maps = [network.get_layer(tap).output for tap in taps]
        outputs.append(keras.Model(network.inputs[0], maps)(uniform((1, 65, 97, 3))))
    for same, symmetric in zip(*outputs, strict=True):
        assert np.std(same, axis=(1, 2)).max() > 1e-3 * np.max(same)
        np.testing.assert_allclose(same, symmetric, atol=1e-6 * np.max(same))


@pytest.mark.parametrize("backbone", ["mobilenet_v1", "mobilenet_v2"])
def test_activation_of_a_backbone_extras_and_lite_heads(backbone):
    x = np.float32([-1, 0, 5, 7])
    options = {"model__heads": "lite", "model__extras": "separable"}
    for activation, expected in (("auto", 6), ("relu", 7), ("relu6", 6)):
        model = build.build(make_config(backbone, 64, model__activation=activation, **options)).model
        found = [
            layer
            for layer in detector.all_layers(model)
            if isinstance(layer, (keras.layers.ReLU, keras.layers.Activation))
        ]
        groups = {registry.layer_group(layer) for layer in found}
        assert groups == {"backbone", "extras", "heads"}
        for layer in found:
            assert np.asarray(layer(x)).tolist() == [0, 0, 5, expected], layer.name


def test_tap_of_vgg_behind_a_batch_norm():
    """(x - mean) / sqrt(variance + epsilon) * scale + shift, where the L2 normalisation stands otherwise."""
    config = make_config("vgg16", 64, model__tap_norm="bn", model__norm_epsilon=1e-5)
    model = build.build(config).model
    layer = model.get_layer("backbone").get_layer("neck_block4_conv3")
    generator = np.random.default_rng(1)
    scale, shift, mean, variance = (generator.uniform(0.5, 2, 512).astype(np.float32) for _ in range(4))
    layer.set_weights([scale, shift, mean, variance])
    body = model.get_layer("backbone")
    before, after = keras.Model(body.inputs[0], [body.get_layer("block4_conv3").output, body.outputs[0]])(
        generator.uniform(-100, 100, (1, 64, 64, 3)).astype(np.float32)
    )
    assert layer is body.outputs[0]._keras_history.operation
    expected = (before - mean) / np.sqrt(variance + 1e-5) * scale + shift
    np.testing.assert_allclose(after, expected, rtol=1e-4, atol=1e-4)
    assert registry.layer_group(layer) == "neck"
    plain = feature_extractor(make_config("vgg16", 64).model).get_layer("backbone")
    assert isinstance(plain.get_layer("neck_block4_conv3"), layers.L2Normalize)


def two_maps(channels=(3, 5)):
    """Symbolic maps of 4x4 and 2x2 cells."""
    return [keras.Input((side, side, count)) for side, count in zip((4, 2), channels, strict=True)]


def fill(model):
    """Gives every weight numbers of its own."""
    generator = np.random.default_rng(2)
    for weight in model.weights:
        weight.assign(generator.uniform(0.1, 1, weight.shape))
    return model


def test_heads_of_1x1():
    maps = two_maps()
    model = fill(keras.Model(maps, heads.add_heads(maps, (2, 1), 3, "class_logits", "conv1x1")))
    values = [uniform((1, *x.shape[1:])) for x in maps]
    expected = []
    for level, (value, count) in enumerate(zip(values, (2, 1), strict=True), 1):
        kernel, bias = model.get_layer(f"head_{level}_class_logits").get_weights()
        assert kernel.shape == (1, 1, value.shape[-1], count * 3)
        expected.append((value @ kernel[0, 0] + bias).reshape(1, -1, 3))
    np.testing.assert_allclose(model(values), np.concatenate(expected, axis=1), rtol=1e-5)


@pytest.mark.parametrize("kind", ["conv", "conv1x1", "lite"])
@pytest.mark.parametrize("last", ["same", "conv", "conv1x1", "lite"])
def test_last_head_is_of_its_own_kind(kind, last):
    maps = two_maps()
    model = keras.Model(maps, heads.add_heads(maps, (1, 1), 4, "box_deltas", kind, last=last))
    names = [layer.name for layer in model.layers]
    for level, expected in ((1, kind), (2, kind if last == "same" else last)):
        kernel = model.get_layer(f"head_{level}_box_deltas").kernel.shape
        assert kernel[:2] == ((3, 3) if expected == "conv" else (1, 1))
        assert (f"head_{level}_box_deltas_depthwise" in names) == (expected == "lite")


def test_last_head_of_a_recipe():
    config = make_config("mobilenet_v2", 64, model__heads="lite", model__last_head="conv1x1")
    model = build.build(config).model
    names = [layer.name for layer in model.layers]
    levels = len(build.build_map_sizes(config))
    for key in ("class_logits", "box_deltas"):
        depthwise = [level for level in range(1, levels + 1) if f"head_{level}_{key}_depthwise" in names]
        assert depthwise == list(range(1, levels))
        assert model.get_layer(f"head_{levels}_{key}").kernel.shape[:2] == (1, 1)


def test_merged_background_has_the_sum_of_the_shares():
    logits = uniform((2, 7, 6), -5, 5)
    merged = np.asarray(heads.MergeBackground(3)(logits))
    assert merged.shape == (2, 7, 4)
    shares = np.asarray(tf.nn.softmax(logits))
    expected = np.concatenate([shares[..., :3].sum(axis=-1, keepdims=True), shares[..., 3:]], axis=-1)
    np.testing.assert_allclose(tf.nn.softmax(merged), expected, rtol=1e-5, atol=1e-7)
    assert np.array_equal(merged[..., 1:], logits[..., 3:])  # what is no background stays as it is
    by_hand = heads.MergeBackground(2)(np.log(np.float32([[[1, 2, 4]]])))
    np.testing.assert_allclose(by_hand, np.log([[[3, 4]]]), rtol=1e-6)


def test_one_column_of_background_stays_as_it_is():
    logits = uniform((2, 7, 6), -5, 5)
    np.testing.assert_allclose(heads.MergeBackground(1)(logits), logits, rtol=1e-6)


def test_merged_background_of_extreme_logits_is_finite():
    logits = np.float32([[[1e30, -1e30, 0], [-1e30, -1e30, 0]]])
    assert np.asarray(heads.MergeBackground(2)(logits)).tolist() == [
        [[np.float32(1e30), 0], [np.float32(-1e30), 0]]
    ]


def test_merged_background_can_be_saved(tmp_path):
    logits = keras.Input((7, 6), dtype="float16")
    layer = heads.MergeBackground(3, name="head_merge_background")
    model = keras.Model(logits, layer(logits))
    assert model.output.dtype == "float32"
    model.save(tmp_path / "a.keras")
    again = keras.models.load_model(tmp_path / "a.keras")
    values = uniform((1, 7, 6)).astype(np.float16)
    assert again.get_layer("head_merge_background").columns == 3
    assert np.array_equal(again(values), model(values))


def test_detector_of_several_background_columns():
    """The heads have them all, the output one; the shares are those of a softmax over all of them."""
    config = make_config("mobilenet_v2", 64, model__background_columns=4, model__width=0.35)
    model = build.build(config).model
    joined = model.get_layer("head_class_logits").output
    assert joined.shape[-1] == 4 + 3
    assert model.get_layer("head_1_class_logits").filters == 4 * (4 + 3)
    assert model.output["class_logits"].shape[-1] == 1 + 3
    image = uniform((1, 64, 64, 3), 0, 256).astype(np.uint8)
    inside, found = keras.Model(model.inputs[0], [joined, model.output["class_logits"]])(image)
    np.testing.assert_allclose(tf.nn.softmax(found)[..., 1:], tf.nn.softmax(inside)[..., 4:], rtol=1e-4, atol=1e-7)


def test_merged_background_is_float32_whatever_the_policy():
    config = make_config("mobilenet_v2", 64, model__background_columns=4, model__width=0.35)
    layer = build.build(config, precision="mixed_bfloat16").model.get_layer("head_merge_background")
    assert (layer.compute_dtype, layer.output.dtype) == ("float32", "float32")


def test_one_background_column_adds_no_layer():
    model = build.build(make_config("mobilenet_v2", 64, model__width=0.35)).model
    assert not any(isinstance(layer, heads.MergeBackground) for layer in model.layers)


def test_inverted_extras_end_without_activation():
    x = keras.Input((4, 4, 3))
    outputs = {
        kind: layers.add_extra(x, layers.Extra(6, 5), "extra_1", kind) for kind in ("separable", "inverted")
    }
    models = {kind: fill(keras.Model(x, output)) for kind, output in outputs.items()}
    weights = [[(weight.path, tuple(weight.shape)) for weight in model.weights] for model in models.values()]
    assert weights[0] == weights[1]
    for model in models.values():
        gamma, *rest = model.get_layer("extra_1_bn").get_weights()
        model.get_layer("extra_1_bn").set_weights([gamma - 0.55, *rest])  # of both signs
    values = uniform((2, 4, 4, 3))
    separable, inverted = (np.asarray(model(values)) for model in models.values())
    assert inverted.min() < -0.1 and inverted.shape == (2, 2, 2, 5)
    np.testing.assert_allclose(separable, np.clip(inverted, 0, 6), atol=1e-6)
    relus = [layer.name for layer in models["inverted"].layers if isinstance(layer, keras.layers.Activation)]
    assert relus == ["extra_1_reduce_relu6", "extra_1_depthwise_relu6"]


@pytest.mark.parametrize(
    ("cells", "stride", "after"), [(19, 2, 10), (10, 2, 5), (5, 2, 3), (3, 2, 2), (2, 2, 1), (1, 2, 1), (5, 1, 5)]
)
def test_size_of_same_padding(cells, stride, after):
    extra = layers.Extra(4, 8, kernel=3, stride=stride, padding=layers.SAME)
    assert layers.extra_size((cells, 2 * cells), extra) == (after, -(-2 * cells // stride))
    x = keras.Input((cells, 2 * cells, 3))
    assert layers.add_extra(x, extra, "extra_1").shape[1:3] == layers.extra_size((cells, 2 * cells), extra)


@pytest.mark.parametrize("kind", ["conv", "separable", "inverted"])
def test_same_padding_of_an_even_map_has_its_zeros_at_the_end(kind):
    """A kernel of ones over a map of ones counts the cells under it: 9 but at the bottom and on the right."""
    x = keras.Input((4, 4, 1))
    extra = layers.Extra(1, 1, kernel=3, stride=2, padding=layers.SAME)
    models = [
        keras.Model(x, layers.add_extra(x, each, "extra_1", kind))
        for each in (extra, dataclasses.replace(extra, padding=1))
    ]
    found = []
    for model in models:
        for layer in model.layers:
            if layer.weights and not isinstance(layer, keras.layers.BatchNormalization):
                layer.kernel.assign(np.ones(layer.kernel.shape))
            elif layer.weights:  # the norms leave everything as it is
                layer.set_weights([np.ones(1), np.zeros(1), np.zeros(1), np.full(1, 1 - 1e-3, np.float32)])
        # Small numbers, so that none is cut at 6.
        found.append(np.asarray(model(np.full((1, 4, 4, 1), 0.1, np.float32)))[0, ..., 0] / 0.1)
    np.testing.assert_allclose(found[0], [[9, 6], [6, 4]], rtol=1e-4)
    np.testing.assert_allclose(found[1], [[4, 6], [6, 9]], rtol=1e-4)
    ones = np.ones((1, 4, 4, 1), np.float32)
    expected = tf.nn.conv2d(ones, np.ones((3, 3, 1, 1), np.float32), 2, "SAME")[0, ..., 0]
    np.testing.assert_allclose(found[0], expected, rtol=1e-4)


def test_same_padding_in_a_chain_of_a_recipe():
    chain = ((8, 16, 3, 2, -1), (8, 16, 3, 2, -1), (8, 16, 4, 2, -1))
    config = make_config("mobilenet_v2", 300, model__extras_chain=chain, model__extras="inverted")
    assert build.build_map_sizes(config)[2:] == ((10, 10), (5, 5), (3, 3), (2, 2))


@pytest.mark.parametrize(("epsilon", "expected"), [(0.0, 1e-3), (0.25, 0.25)])
def test_epsilon_of_every_batch_norm(epsilon, expected):
    leaves = {"model__heads": "lite", "model__extras": "separable", "model__neck": "fpn", "model__width": 0.35}
    config = make_config("mobilenet_v2", 64, model__norm_epsilon=epsilon, **leaves)
    model = build.build(config).model
    norms = detector.batch_norms(model)
    assert {registry.layer_group(layer) for layer in norms} == {"backbone", "neck", "extras", "heads"}
    assert {layer.epsilon for layer in norms} == {expected}
    # Fresh statistics: (x - 0) / sqrt(1 + epsilon).
    body = model.get_layer("backbone")
    image = uniform((1, 64, 64, 3))
    before, after = keras.Model(body.inputs[0], [body.get_layer(name).output for name in ("Conv1", "bn_Conv1")])(
        image
    )
    np.testing.assert_allclose(after, before / np.sqrt(1 + expected), rtol=1e-5, atol=1e-6)


def test_epsilon_stays_when_the_model_is_saved(tmp_path):
    config = make_config("mobilenet_v2", 64, model__norm_epsilon=1e-5, model__width=0.35)
    model = build.build(config).model
    model.save(tmp_path / "a.keras")
    again = keras.models.load_model(tmp_path / "a.keras")
    assert {layer.epsilon for layer in detector.batch_norms(again)} == {1e-5}
    image = uniform((1, 64, 64, 3), 0, 256).astype(np.uint8)
    for key, value in model(image).items():
        assert np.array_equal(again(image)[key], value)


def test_chain_longer_than_its_maps_allow_is_refused():
    config = make_config("mobilenet_v2", 64, model__extras_chain=((8, 16, 5, 1, 0),))
    with pytest.raises(ConfigError, match="kernel 5 does not fit a 2x2 map"):
        feature_extractor(config.model)
    same = make_config("mobilenet_v2", 64, model__extras_chain=((8, 16, 5, 1, -1),))
    assert build.build_map_sizes(same)[-1] == (2, 2)
