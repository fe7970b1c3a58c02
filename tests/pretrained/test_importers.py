"""Weights in other people's files: what fits is assigned, all else is one line and changes nothing."""

import errno
import json
import struct
import sys

import keras
import numpy as np
import pytest
import safetensors
from safetensors.numpy import save, save_file

from ssd_tf import config as configs
from ssd_tf.api import build, weights
from ssd_tf.errors import ConfigError, DataError, EnvironmentFault
from ssd_tf.models import registry
from ssd_tf.pretrained import importers
from ssd_tf.pretrained.places import Place
from ssd_tf.pretrained.safetensors_file import open_safetensors

PLACES = {
    "a.conv.weight": Place("one", "kernel", (2, 3, 1, 0)),
    "a.bn.weight": Place("one_bn", "gamma"),
    "a.bn.bias": Place("one_bn", "beta"),
    "a.bn.running_mean": Place("one_bn", "moving_mean"),
    "a.bn.running_var": Place("one_bn", "moving_variance"),
    "b.conv.weight": Place("two", "kernel", (2, 3, 1, 0)),
}
IMPORTER = importers.Importer(open_safetensors, PLACES, lambda name: name.startswith("head."))
WIDEST = 420  # characters of a line, its path left out


def small_network(image_shape=(8, 8, 3)):
    image = keras.Input(image_shape)
    x = keras.layers.Conv2D(2, (1, 3), use_bias=False, name="one")(image)
    x = keras.layers.BatchNormalization(name="one_bn")(x)
    return keras.Model(image, keras.layers.Conv2D(1, 1, use_bias=False, name="two")(x))


def good_arrays():
    """Torch's layout: kernels are output, input, height, width."""
    shapes = {"a.conv.weight": (2, 3, 1, 3), **dict.fromkeys([*PLACES][1:5], (2,)), "b.conv.weight": (1, 2, 1, 1)}
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return arrays | {"a.bn.running_var": np.float32([0, 1.5])}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


@pytest.fixture(scope="module")
def network():
    return small_network()


def refusal(network, path):
    """The line about a file; asserts that the network is as it was."""
    before = network.get_weights()
    with pytest.raises(DataError) as caught:
        importers.load_backbone(IMPORTER, path, network)
    assert all(np.array_equal(old, new) for old, new in zip(before, network.get_weights(), strict=True))
    line = str(caught.value)
    assert line.endswith(f": {path}") and line.isprintable()
    assert len(line) - len(str(path)) <= WIDEST
    return line.removesuffix(f": {path}")


def test_arrays_reach_their_weights(path):
    arrays = good_arrays()
    save_file({**arrays, "head.weight": np.zeros((9, 9), np.int64)}, path)
    network = small_network()
    importers.load_backbone(IMPORTER, path, network)
    kernel = network.get_layer("one").kernel.value.numpy()
    assert kernel.shape == (1, 3, 3, 2)
    for output in range(2):
        for channel in range(3):
            for column in range(3):
                assert kernel[0, column, channel, output] == arrays["a.conv.weight"][output, channel, 0, column]
    norm = network.get_layer("one_bn")
    for name, weight in (("weight", "gamma"), ("bias", "beta"), ("running_mean", "moving_mean")):
        assert np.array_equal(getattr(norm, weight).value, arrays[f"a.bn.{name}"])
    assert np.array_equal(norm.moving_variance.value, arrays["a.bn.running_var"])
    assert (
        network.get_layer("two").kernel.value.numpy().ravel().tolist() == arrays["b.conv.weight"].ravel().tolist()
    )


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_other_floating_point_numbers_are_converted(path, kind):
    save_file({name: array.astype(kind) for name, array in good_arrays().items()}, path)
    network = small_network()
    importers.load_backbone(IMPORTER, path, network)
    expected = good_arrays()["a.bn.bias"].astype(kind).astype(np.float32)
    assert np.array_equal(network.get_layer("one_bn").beta.value, expected)


def test_network_that_ends_early_takes_what_it_has(path):
    arrays = good_arrays()
    arrays["b.conv.weight"] = arrays["b.conv.weight"][:, :1]  # of a layer that is not there: not judged
    save_file(arrays, path)
    network = small_network()
    beginning = keras.Model(network.inputs[0], network.get_layer("one_bn").output)
    importers.load_backbone(IMPORTER, path, beginning)
    assert np.array_equal(beginning.get_layer("one_bn").gamma.value, arrays["a.bn.weight"])


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"a.bn.bias": None}, "a.bn.bias is missing"),
        ({"c.weight": np.ones(2)}, "c.weight is not part of the network"),
        # Its transposition has as many numbers.
        ({"a.conv.weight": np.ones((3, 2, 1, 3))}, "a.conv.weight is 3x2x1x3 in the file, expected 2x3x1x3"),
        ({"a.bn.weight": np.array(1.0)}, "a.bn.weight is one number in the file, expected 2"),
        (
            {"a.bn.bias": None, "c": np.ones(2), "b.conv.weight": np.ones((1, 1, 1, 2))},
            "a.bn.bias is missing; b.conv.weight is 1x1x1x2 in the file, expected 1x2x1x1; "
            "c is not part of the network",
        ),
        (
            {**dict.fromkeys(PLACES), "c": np.ones(1)},
            "a.conv.weight is missing; a.bn.weight is missing; a.bn.bias is missing; and 4 more",
        ),
        ({"b.conv.weight": np.full((1, 2, 1, 1), np.nan)}, "b.conv.weight is not finite"),
        ({"a.bn.running_var": np.float32([1, -1e-9])}, "a.bn.running_var is negative"),
    ],
)
def test_file_that_does_not_fit(network, path, changes, line):
    arrays = {**good_arrays(), **changes}
    save_file({name: np.asarray(x, np.float32) for name, x in arrays.items() if x is not None}, path)
    assert refusal(network, path) == f"weights do not fit: {line}"


def test_number_too_large_for_the_network(network, path):
    save_file({**good_arrays(), "b.conv.weight": np.full((1, 2, 1, 1), 1e300)}, path)
    assert refusal(network, path) == "weights do not fit: b.conv.weight is not finite"


def test_numbers_that_are_no_weights(network, path):
    save_file({**good_arrays(), "b.conv.weight": np.ones((1, 2, 1, 1), np.int64)}, path)
    assert refusal(network, path) == "b.conv.weight is of type I64, expected one of F16, F32, F64"


def with_header(header, body=bytes(8)):
    return struct.pack("<Q", len(header)) + header + body


def entry(name="c", shape=(2,), kind="F32", start=0, end=8):
    return json.dumps({name: {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}}).encode()


HOSTILE = {
    "empty": b"",
    "a pickle": b"\x80\x04\x95" + bytes(40),
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(99),
    "cut in its header": save(good_arrays())[:50],
    "cut in its last array": save(good_arrays())[:-1],
    "something behind the last array": save(good_arrays()) + b"\0",
    "a header as large as the memory": struct.pack("<Q", 1 << 62) + b"{}",
    "a header that is no text": with_header(b"\xff\xfe{}"),
    "a header without end": with_header(b'{"a":' * 20_000),
    "an array beyond the end": with_header(entry(shape=(4,), end=16)),
    "an array larger than its bytes": with_header(entry(shape=(200,))),
    "an array that overflows": with_header(entry(shape=(1 << 62, 8))),
    "a size below zero": with_header(entry(shape=(-2,))),
    "an unknown type of an endless name": with_header(entry(kind="\n\x1b[31m" * 500)),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_file_that_is_damaged_or_something_else(network, path, content):
    path.write_bytes(content)
    assert refusal(network, path).startswith("cannot read safetensors: ")


def test_names_that_are_made_to_spoil_the_line(network, path):
    path.write_bytes(with_header(entry(name="a.bn.bias", shape=[1] * 3000 + [2])))
    assert refusal(network, path).endswith(
        "; a.bn.bias is 1x" + "1x" * 39 + " in the file, expected 2; and 3 more"
    )
    header = json.loads(entry())
    header |= {name: {"dtype": "F32", "shape": list(array.shape)} for name, array in good_arrays().items()}
    del header["c"]
    position = 0
    for item, array in zip(header.values(), good_arrays().values(), strict=True):
        item["data_offsets"] = [position, position := position + array.nbytes]
    for index in range(5):
        header["\x1b[2J\n" * 200 + str(index)] = {"dtype": "F32", "shape": [0], "data_offsets": [position] * 2}
    path.write_bytes(with_header(json.dumps(header).encode(), bytes(position)))
    line = refusal(network, path)
    assert line.startswith("weights do not fit: \\x1b[2J\\n\\x1b") and line.endswith("; and 2 more")


def test_file_that_is_not_there(tmp_path):
    (tmp_path / "folder.safetensors").mkdir()
    for name in ("no.safetensors", "folder.safetensors"):
        overrides = ["model.backbone=inception_v4", f"model.weights={tmp_path / name}"]
        with pytest.raises(DataError, match=rf"model\.weights: no such file: .*{name}"):
            weights.load_extractor(configs.load_config(None, overrides).model)


def test_file_that_the_system_refuses(network, path, monkeypatch):
    path.touch()

    def refuse(path, framework):
        raise PermissionError(errno.EACCES, "as the system says")

    monkeypatch.setattr(safetensors, "safe_open", refuse)
    assert refusal(network, path) == "cannot read: permission denied"


def test_missing_package_names_the_extra(network, path, monkeypatch):
    save_file(good_arrays(), path)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(EnvironmentFault) as caught:
        importers.load_backbone(IMPORTER, path, network)
    assert str(caught.value) == (
        f"safetensors is not installed (pip install safetensors, or the extra ssd_tf[import]): {path}"
    )
    assert caught.value.exit_code == 5


def test_extra_is_in_the_setup(repository):
    assert '"import": ["safetensors' in (repository / "setup.py").read_text()


def config_of(backbone, weights, **leaves):
    leaves = {"model__backbone": backbone, "model__weights": str(weights), "model__num_classes": 2, **leaves}
    return configs.replace(configs.Config(), **leaves)


@pytest.mark.parametrize("call", [build.check, build.build])
@pytest.mark.parametrize("name", ["model.safetensors", "MODEL.SAFETENSORS"])
def test_backbone_that_no_such_file_is_read_for(tmp_path, call, name):
    with pytest.raises(ConfigError) as caught:
        call(config_of("tiny_ssd", tmp_path / name))
    assert str(caught.value) == (
        f"model.weights: .safetensors files are read for inception_v4, not for tiny_ssd: {tmp_path / name}"
    )


@pytest.mark.parametrize("call", [build.check, build.build])
@pytest.mark.parametrize(
    ("name", "suffix"),
    [("a.pth", ".pth"), ("A.PT", ".pt"), ("frozen_inference_graph.pb", ".pb"), ("coco/model.json", ".json")]
    + [("vgg_16.ckpt", ".ckpt"), ("model.ckpt-120", ".ckpt-120")],
)
def test_files_that_are_to_be_imported_first(call, name, suffix):
    with pytest.raises(ConfigError) as caught:
        call(config_of("tiny_ssd", name))
    assert str(caught.value) == (
        f"model.weights: {suffix} files are imported first: ssd-import --source=NAME --weights={name} "
        "--output=FILE.weights.h5 (ssd-import --list has the names)"
    )


@pytest.mark.parametrize("weights", ["none", "imagenet", "a.weights.h5", "model.safetensors.h5"])
def test_what_keras_reads_is_left_to_keras(weights):
    assert importers.find_importer(configs.ModelConfig(backbone="inception_v4", weights=weights)) is None


@pytest.fixture
def small_backbone(monkeypatch):
    """The small network as a backbone with an importer, forgotten after the test."""
    monkeypatch.setattr(registry, "_BACKBONES", dict(registry._BACKBONES))
    monkeypatch.setitem(importers._IMPORTERS[".safetensors"], "small", IMPORTER)
    registry.register_backbone("small", taps=("one", "two"))(
        lambda image_shape, weights: small_network(image_shape)
    )


@pytest.mark.usefixtures("small_backbone")
def test_detector_is_built_with_the_file(path):
    save_file(good_arrays(), path)
    config = config_of("small", path, model__image_size=(32, 32), model__levels=2)
    backbone = build.build(config).model.get_layer("backbone")
    assert np.array_equal(
        backbone.get_layer("two").kernel.value[0, 0, :, 0], good_arrays()["b.conv.weight"][0, :, 0, 0]
    )
    save_file({name: array for name, array in good_arrays().items() if name != "a.bn.bias"}, path)
    with pytest.raises(DataError) as caught:
        build.build(config)
    assert str(caught.value) == f"weights do not fit: a.bn.bias is missing: {path}"
    assert caught.value.exit_code == 3


@pytest.mark.usefixtures("small_backbone")
def test_file_is_not_read_where_no_weights_are_wanted(tmp_path):
    config = config_of("small", tmp_path / "no.safetensors", model__image_size=(32, 32), model__levels=2)
    build.check(config, load_weights=False)
    assert build.build(config, load_weights=False).model
    for call in (build.check, build.build):
        with pytest.raises(DataError, match=r"model\.weights: no such file: .*no\.safetensors"):
            call(config)
