"""TF-slim's classifiers fill our backbones, which then give the maps of the network as slim builds it."""

import h5py
import keras
import numpy as np
import pytest
import slim_networks
import tensorflow as tf
from golden_cases import assert_fills, assert_near
from slim_networks import Variables, make_up

from ssd_tf.errors import DataError
from ssd_tf.models import mobilenet, registry, vgg
from ssd_tf.models.layers import make_preprocess
from ssd_tf.pretrained import places, slim

SOURCES = {source.about.name: source for source in slim.SOURCES}
MEAN = np.array([123.68, 116.779, 103.939], np.float32)  # red, green, blue


def image(side, height=None):
    return np.random.default_rng(3).integers(0, 256, (1, height or side, side, 3), np.uint8)


def build(source, shape):
    """The source's backbone for images of a shape, not filled."""
    return registry.get_backbone(source.about.backbone).build(shape, None)


def fill(source, model, variables):
    """Fills the network, as an import does it; every weight is filled once."""
    shapes = {name: array.shape for name, array in variables.items() if not source.is_unused(name)}
    targets = source.places(shapes)
    assert_fills(targets, model)
    places.fill(model, targets, shapes, variables.__getitem__)


def run(source, model, pixels, names):
    """The outputs of some layers for an image, preprocessed as the backbone wants it."""
    mode = registry.get_backbone(source.about.backbone).preprocessing
    maps = keras.Model(model.inputs[0], {name: model.get_layer(name).output for name in names})
    outputs = maps(make_preprocess(mode)(pixels), training=False)
    return [np.asarray(outputs[name]) for name in names]


def check(name, network, side, layers):
    """slim's network and ours, filled from its variables, give the same maps."""
    source, variables, pixels = SOURCES[name], Variables(), image(side, side + 2)
    maps = network(variables, pixels.astype(np.float32) / 127.5 - 1)
    model = build(source, pixels.shape[1:])
    add_others(variables, next(iter(variables)).partition("/")[0])
    fill(source, model, variables)
    for layer, found, expected in zip(layers, run(source, model, pixels, layers), maps, strict=True):
        compare(found, expected, layer)
    return model


def compare(found, expected, layer):
    """Maps are near each other; and depend on the image, so that every layer before has its part in them."""
    expected = np.asarray(expected)
    assert np.std(expected, axis=(1, 2)).mean() > 0.1 * np.std(expected), layer
    assert_near(found, expected, layer)


def add_others(variables, network):
    """What lies in published checkpoints besides."""
    for name in ("Logits/Logits/weights", "logits/biases", "AuxLogits/Conv2d_2a/BatchNorm/beta", "mean_rgb"):
        variables[f"{network}/{name}"] = np.zeros(3, np.float32)
    variables["beta1_power"] = np.zeros((), np.float32)


def test_mobilenet_v1():
    check("slim_mobilenet_v1", lambda *given: [slim_networks.mobilenet_v1(*given)], 75, ["conv_pw_13_relu"])


def test_mobilenet_v2():
    check("slim_mobilenet_v2", lambda *given: [slim_networks.mobilenet_v2(*given)], 75, ["out_relu"])


def test_inception_v4():
    check("slim_inception_v4", slim_networks.inception_v4, 139, ["Mixed_5e", "Mixed_6h", "Mixed_7d"])


def test_inception_resnet_v2():
    """Its layers have names of their own, whatever number Keras' count begins with."""
    keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Conv2D(2, 1), keras.layers.BatchNormalization()])
    layers = ["block35_10_ac", "block17_20_ac", "conv_7b_ac"]
    model = check("slim_inception_resnet_v2", slim_networks.inception_resnet_v2, 139, layers)
    assert model.get_layer("block17_20_Branch_1_Conv2d_0b_1x7").kernel.shape == (1, 7, 128, 160)
    assert model.layers[16] is model.get_layer("Conv2d_4a_3x3_relu")


@pytest.mark.parametrize(("depth", "units"), [(50, (3, 4, 6, 3)), (152, (3, 8, 36, 3))])
def test_resnet_v1(depth, units):
    source, variables = SOURCES[f"slim_resnet_v1_{depth}"], Variables()
    pixels = image(65, 61)  # the first convolution gives odd maps: all pools lie at the same place
    expected = slim_networks.resnet(variables, pixels - MEAN, 1, units)
    assert not any(name.endswith("biases") for name in variables)
    model = build(source, pixels.shape[1:])
    add_others(variables, f"resnet_v1_{depth}")
    fill(source, model, variables)
    compare(run(source, model, pixels, ["conv5_block3_out"])[0], expected, "conv5_block3_out")


@pytest.mark.parametrize(("depth", "units"), [(50, (3, 4, 6, 3)), (101, (3, 4, 23, 3))])
def test_resnet_v2(depth, units):
    source, variables = SOURCES[f"slim_resnet_v2_{depth}"], Variables()
    # Positive before the first pool: what Keras pads with is never the largest.
    variables[f"resnet_v2_{depth}/conv1/biases"] = np.linspace(20, 21, 64, dtype=np.float32)
    pixels = image(65, 61)
    expected = slim_networks.resnet(variables, pixels.astype(np.float32) / 127.5 - 1, 2, units)
    model = build(source, pixels.shape[1:])
    add_others(variables, f"resnet_v2_{depth}")
    fill(source, model, variables)
    compare(run(source, model, pixels, ["post_relu"])[0], expected, "post_relu")


@pytest.mark.parametrize(("version", "depth"), [(1, 101), (2, 152)])
def test_resnets_of_other_depths(version, depth):
    targets = SOURCES[f"slim_resnet_v{version}_{depth}"].places({})
    units = {name.split("/bottleneck")[0] for name in targets if "/unit_" in name}
    counts = {101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}[depth]
    expected = [(stage, unit) for stage, count in enumerate(counts, 1) for unit in range(1, count + 1)]
    assert units == {f"resnet_v{version}_{depth}/block{stage}/unit_{unit}" for stage, unit in expected}
    layers = {place.layer for place in targets.values()}
    assert f"conv4_block{counts[2]}_3_conv" in layers and f"conv4_block{counts[2] + 1}_3_conv" not in layers


def overlapping(shape, strides, seed):
    """An array that is large, but not in memory: its entry (i, j, ..) is number i * strides[0] + .. of a line."""
    steps = np.array(strides)
    line = np.random.default_rng(seed).standard_normal(np.dot(steps, np.array(shape) - 1) + 1, np.float32)
    return np.lib.stride_tricks.as_strided(line, shape, steps * 4, writeable=False)


@pytest.fixture
def vgg_file(weights):
    return str(weights / "imagenet" / "vgg16_notop.weights.h5")


def vgg_variables(path):
    """slim's vgg_16 with the convolutions of a Keras file: red comes first in slim's."""
    variables = Variables()
    blocks = [f"conv{block}/conv{block}_{index}" for block in range(1, 6) for index in range(1, 3 + (block > 2))]
    with h5py.File(path) as file:
        for position, name in enumerate(blocks):
            layer = file[f"layers/conv2d_{position}" if position else "layers/conv2d"]
            kernel, bias = layer["vars/0"][()], layer["vars/1"][()]
            variables[f"vgg_16/{name}/weights"] = kernel if position else kernel[:, :, ::-1]
            variables[f"vgg_16/{name}/biases"] = bias
    variables["vgg_16/fc6/weights"] = overlapping((7, 7, 512, 4096), (7, 1, 1, 512), 0)
    variables["vgg_16/fc7/weights"] = overlapping((1, 1, 4096, 4096), (0, 0, 1, 512), 1)
    for name in ("fc6", "fc7"):
        variables[f"vgg_16/{name}/biases"] = make_up(name, (4096,))
    variables["vgg_16/fc8/weights"] = np.zeros((1, 1, 4096, 1000), np.float32)
    return variables


def test_vgg_16_with_keras_weights(vgg_file):
    variables, pixels = vgg_variables(vgg_file), image(64, 48)
    maps = slim_networks.vgg_16(variables, pixels - MEAN)
    source = SOURCES["slim_vgg_16"]
    model, theirs = build(source, pixels.shape[1:]), vgg.vgg16(pixels.shape[1:], vgg_file)
    fill(source, model, variables)
    layers = ["block4_conv3", "block5_conv3", "neck_block4_conv3"]
    found = run(source, model, pixels, layers)
    for name, one, other in zip(layers, found, run(source, theirs, pixels, layers), strict=True):
        assert_near(one, other, name)
    for name, one, other in zip(layers, found, maps, strict=False):
        compare(one, other, name)


def test_fully_connected_layers_of_vgg_16_are_thinned_out(vgg_file):
    variables, source = vgg_variables(vgg_file), SOURCES["slim_vgg_16"]
    model = build(source, (64, 64, 3))
    fill(source, model, variables)
    kernel, bias = (np.asarray(weight) for weight in model.get_layer("fc6").weights)
    assert kernel.shape == (3, 3, 512, 1024)
    for row, column, channel, output in ((0, 0, 0, 0), (2, 1, 7, 5), (1, 2, 511, 1023)):
        expected = variables["vgg_16/fc6/weights"][3 * row, 3 * column, channel, 4 * output]
        assert kernel[row, column, channel, output] == expected
        assert bias[output] == variables["vgg_16/fc6/biases"][4 * output]
    kernel, bias = (np.asarray(weight) for weight in model.get_layer("fc7").weights)
    assert np.array_equal(kernel, variables["vgg_16/fc7/weights"][:, :, ::4, ::4])
    assert np.array_equal(bias, variables["vgg_16/fc7/biases"][::4])
    assert np.array_equal(model.get_layer("neck_block4_conv3").gamma, np.full(512, 20))


def test_mobilenet_v1_with_keras_weights(weights):
    path = str(weights / "imagenet" / "mobilenet_v1_1001.weights.h5")
    theirs = keras.applications.MobileNet(weights=path, classes=1001)
    variables = Variables()
    layers = {"Conv2d_0": "conv1"}
    for index in range(1, 14):
        layers |= {
            f"Conv2d_{index}_depthwise": f"conv_dw_{index}",
            f"Conv2d_{index}_pointwise": f"conv_pw_{index}",
        }
    for name, layer in layers.items():
        kind = "depthwise_weights" if name.endswith("depthwise") else "weights"
        variables[f"MobilenetV1/{name}/{kind}"] = theirs.get_layer(layer).get_weights()[0]
        for weight in theirs.get_layer(f"{layer}_bn").weights:
            variables[f"MobilenetV1/{name}/BatchNorm/{weight.name}"] = np.asarray(weight)
    source, pixels = SOURCES["slim_mobilenet_v1"], image(96)
    model = build(source, pixels.shape[1:])
    fill(source, model, variables)
    names = ["conv_pw_5_relu", "conv_pw_13_relu"]
    by_file = run(source, mobilenet.mobilenet_v1(pixels.shape[1:], path), pixels, names)
    for name, found, expected in zip(names, run(source, model, pixels, names), by_file, strict=True):
        assert_near(found, expected, name)


def test_width_of_mobilenets_is_that_of_the_network():
    targets = SOURCES["slim_mobilenet_v1"].places({})
    model = mobilenet.mobilenet_v1((32, 32, 3), None, width=0.25)
    assert_fills(targets, model)
    layers = {layer.name: layer for layer in model.layers}
    arrays = {name: make_up(name, getattr(layers[p.layer], p.weight).shape) for name, p in targets.items()}
    shapes = {name: array.shape for name, array in arrays.items()}
    places.fill(model, targets, shapes, arrays.__getitem__)
    expected = arrays["MobilenetV1/Conv2d_13_pointwise/weights"]
    assert expected.shape == (1, 1, 256, 256)
    assert np.array_equal(layers["conv_pw_13"].kernel, expected)
    with pytest.raises(DataError, match=r"Conv2d_0/weights is 3x3x3x8 in the file, expected 3x3x3x32; .* more$"):
        places.fill(mobilenet.mobilenet_v1((32, 32, 3), None), targets, shapes, arrays.__getitem__)


@pytest.mark.parametrize(
    ("network", "source", "start"),
    [
        ("resnet_v1_50", "slim_resnet_v1_50", "resnet_v1_50/conv1/weights is missing; "),
        ("vgg_16", "slim_vgg_16", "vgg_16/fc6/weights is 1x1x1x1 in the file, expected 7x7x512x4096; "),
    ],
)
def test_checkpoint_of_another_network(network, source, start):
    source = SOURCES[source]
    model = build(source, (64, 64, 3))
    shapes = {f"{network}/fc6/weights": (1, 1, 1, 1)}
    if network == "vgg_16":
        layers = {layer.name: layer for layer in model.layers}
        rest = {name: place for name, place in source.places({}).items() if "/fc" not in name and not place.value}
        shapes |= {name: tuple(getattr(layers[p.layer], p.weight).shape) for name, p in rest.items()}
    with pytest.raises(DataError) as caught:
        places.fill(model, source.places(shapes), shapes, None)
    assert str(caught.value).startswith(f"weights do not fit: {start}")


def small_network():
    image = keras.Input((4, 4, 3))
    return keras.Model(image, keras.layers.Conv2D(2, (1, 2), name="one")(image))


def test_places_reverse_thin_out_and_fill():
    kernel = np.arange(1 * 3 * 3 * 6, dtype=np.float32).reshape(1, 3, 3, 6)
    steps = {"steps": (1, 2, -1, 3), "whole": (1, 3, 3, 6)}
    targets = {
        "kernel": places.Place("one", "kernel", (0, 1, 2, 3), **steps),
        "bias": places.Place("one", "bias", value=-0.5),
    }
    model = small_network()
    places.fill(model, targets, {"kernel": (1, 3, 3, 6)}, {"kernel": kernel}.__getitem__)
    found = np.asarray(model.layers[1].kernel)
    expected = [
        [[[12, 15], [6, 9], [0, 3]], [[48, 51], [42, 45], [36, 39]]]
    ]  # the entry at (0, j, c, o) is 18j+6c+o
    assert found.tolist() == expected
    assert np.asarray(model.layers[1].bias).tolist() == [-0.5, -0.5]
    targets["kernel"] = places.Place("one", "kernel", (1, 0, 3, 2), **steps)
    places.fill(model, targets, {"kernel": (3, 1, 6, 3)}, lambda _: kernel.transpose(1, 0, 3, 2))
    assert np.asarray(model.layers[1].kernel).tolist() == expected


@pytest.mark.parametrize(
    ("shapes", "line"),
    [
        ({"kernel": (1, 2, 3, 2)}, "kernel is 1x2x3x2 in the file, expected 1x3x3x6"),
        ({"kernel": (1, 3, 3, 6), "bias": (2,)}, "bias is not part of the network"),
    ],
)
def test_places_that_a_file_does_not_fit(shapes, line):
    targets = {
        "kernel": places.Place("one", "kernel", (0, 1, 2, 3), steps=(1, 2, -1, 3), whole=(1, 3, 3, 6)),
        "bias": places.Place("one", "bias", value=-0.5),
    }
    with pytest.raises(DataError) as caught:
        places.fill(small_network(), targets, shapes, None)
    assert str(caught.value) == f"weights do not fit: {line}"


def write_checkpoint(prefix, variables):
    names = sorted(variables)
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=names,
        shape_and_slices=[""] * len(names),
        tensors=[tf.convert_to_tensor(variables[name]) for name in names],
    )


def test_checkpoint_with_moving_averages(tmp_path):
    """Averages stand for the weights; what the optimizer keeps is left out."""
    source, variables, pixels = SOURCES["slim_mobilenet_v1"], Variables(), image(64)
    expected = slim_networks.mobilenet_v1(variables, pixels.astype(np.float32) / 127.5 - 1)
    stored = {f"{name}/ExponentialMovingAverage": array for name, array in variables.items()}
    for name, array in variables.items():
        stored |= {name: array + 1, f"{name}/RMSProp": array, f"{name}/RMSProp_1": array}
    stored |= {"global_step": np.int64(7), "MobilenetV1/Logits/Conv2d_1c_1x1/biases": np.zeros(1001, np.float32)}
    write_checkpoint(tmp_path / "mobilenet_v1_1.0_224.ckpt", stored)
    model = build(source, pixels.shape[1:])
    with source.open(tmp_path / "mobilenet_v1_1.0_224.ckpt") as (shapes, read):
        used = {name: shape for name, shape in shapes.items() if not source.is_unused(name)}
        places.fill(model, source.places(used), used, read)
    assert_near(run(source, model, pixels, ["conv_pw_13_relu"])[0], np.asarray(expected), "conv_pw_13_relu")


def test_sources():
    assert len(SOURCES) == 11
    for source in SOURCES.values():
        assert source.about.backbone in registry.list_backbones()
        (download,) = source.about.downloads
        assert download.url.startswith("https://") and download.url.endswith((".tar.gz", ".tgz"))
        assert download.member.endswith(".ckpt")
        assert source.about.licence.startswith("Apache-2.0")
