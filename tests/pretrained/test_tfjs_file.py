"""TensorFlow.js models are read array by array; what does not fit together is refused in one line."""

import json

import numpy as np
import pytest

from ssd_tf import fileio
from ssd_tf.errors import DataError
from ssd_tf.pretrained import tfjs_file

KINDS = {"f": "float32", "i": "int32", "b": "bool"}


def good_arrays():
    return {
        "a/weights": np.arange(6, dtype=np.float32).reshape(2, 3) / 4,
        "b": np.array([7, -8], np.int32),
        "c": np.array(0.5, np.float32),
        "d": np.array([True, False, True]),
        "e/weights": -np.arange(10, dtype=np.float32),
    }


def write_model(folder, arrays, shard=20, nodes=()):
    """Writes arrays as a graph model whose shards hold `shard` bytes each; returns model.json's content."""
    data = b"".join(array.tobytes() for array in arrays.values())
    parts = [data[start : start + shard] for start in range(0, len(data), shard)]
    names = [f"group1-shard{number}of{len(parts)}" for number in range(1, len(parts) + 1)]
    for name, part in zip(names, parts, strict=True):
        (folder / name).write_bytes(part)
    entries = [
        {"name": name, "shape": list(array.shape), "dtype": KINDS[array.dtype.kind]}
        for name, array in arrays.items()
    ]
    content = {"modelTopology": {"node": list(nodes)}, "weightsManifest": [{"paths": names, "weights": entries}]}
    write_json(folder, content)
    return content


def write_json(folder, content):
    (folder / "model.json").write_text(json.dumps(content))


def read_all(path):
    with tfjs_file.open_tfjs(path) as (shapes, read):
        arrays = {name: read(name) for name in shapes}
    assert {name: array.shape for name, array in arrays.items()} == shapes
    assert all(array.dtype == np.float32 for array in arrays.values())
    return arrays


def refusal(path):
    with pytest.raises(DataError) as caught:
        read_all(path)
    return str(caught.value)


@pytest.mark.parametrize("shard", [3, 20, 24, 1000])
@pytest.mark.parametrize("name", ["", "model.json"])
def test_arrays_come_back_wherever_the_shards_are_cut(tmp_path, shard, name):
    write_model(tmp_path, good_arrays(), shard)
    found = read_all(tmp_path / name)
    assert list(found) == list(good_arrays())
    for key, array in good_arrays().items():
        np.testing.assert_array_equal(found[key], array)


def test_groups_have_bytes_of_their_own(tmp_path):
    first = write_model(tmp_path, {"a": np.ones(3, np.float32)})
    (tmp_path / "other").mkdir()
    second = write_model(tmp_path / "other", {"b": np.full(2, 5, np.float32)})
    group = second["weightsManifest"][0]
    group["paths"] = ["other/group1-shard1of1"]
    first["weightsManifest"].append(group)
    write_json(tmp_path, first)
    found = read_all(tmp_path)
    assert found["a"].tolist() == [1, 1, 1] and found["b"].tolist() == [5, 5]


def test_quantised_arrays_are_what_they_stand_for(tmp_path):
    stored = {
        "a": (np.array([0, 1, 255], np.uint8), {"dtype": "uint8", "scale": 0.5, "min": -3}),
        "b": (np.array([0, 65535], np.uint16), {"dtype": "uint16", "scale": 2, "min": 0.25}),
        "c": (np.array([0.5, -2], np.float16), {"dtype": "float16"}),
    }
    data = b"".join(array.tobytes() for array, _ in stored.values())
    (tmp_path / "shard").write_bytes(data)
    entries = [
        {"name": name, "shape": list(array.shape), "dtype": "float32", "quantization": quantization}
        for name, (array, quantization) in stored.items()
    ]
    group = {"paths": ["shard"], "weights": entries}
    write_json(tmp_path, {"modelTopology": {"node": []}, "weightsManifest": [group]})
    found = {name: array.tolist() for name, array in read_all(tmp_path).items()}
    assert found == {"a": [-3, -2.5, 124.5], "b": [0.25, 131070.25], "c": [0.5, -2]}


def test_folded_batch_norms_get_names_and_arrays_of_ones_that_do_the_same(tmp_path):
    rng = np.random.default_rng(3)
    arrays = {
        "conv/Conv2D/merged_input": rng.random((1, 1, 2, 3)),
        "conv/BatchNorm/batchnorm/sub": rng.random(3),
        "dw/depthwise_weights": rng.random((3, 3, 2, 1)),
        "dw/BatchNorm/batchnorm/mul": rng.random(2),
        "dw/BatchNorm/batchnorm/sub": rng.random(2),
        "head/BatchNorm/gamma": rng.random(2),
    }
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    write_model(tmp_path, arrays)
    found = read_all(tmp_path)
    norms = [f"{part}/BatchNorm/{name}" for part in ("conv", "dw") for name in ("beta", "gamma")]
    norms += [f"{part}/BatchNorm/moving_{name}" for part in ("conv", "dw") for name in ("mean", "variance")]
    assert set(found) == {"conv/weights", "dw/depthwise_weights", "head/BatchNorm/gamma", *norms}
    np.testing.assert_array_equal(found["conv/weights"], arrays["conv/Conv2D/merged_input"])
    for part, scale in (("conv", np.ones(3)), ("dw", arrays["dw/BatchNorm/batchnorm/mul"])):
        gamma, beta, mean, variance = (
            found[f"{part}/BatchNorm/{name}"] for name in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        x = np.linspace(-5, 5, len(gamma), dtype=np.float32)
        normalised = gamma * (x - mean) / np.sqrt(variance + np.float32(1e-3)) + beta
        assert not mean.any() and np.all(variance + np.float32(1e-3) == 1)
        expected = scale.astype(np.float32) * x + arrays[f"{part}/BatchNorm/batchnorm/sub"]
        np.testing.assert_array_equal(normalised, expected)


def test_graph_tells_its_operations_and_epsilons(tmp_path):
    nodes = [
        {"name": "a", "op": "Softmax"},
        {"name": "b", "op": "FusedBatchNormV3", "attr": {"epsilon": {"f": 0.25}}},
        {"name": "c", "op": "Other", "attr": {"epsilon": {"f": 0.5}}},
        {"name": "d", "op": "FusedBatchNorm", "attr": {"epsilon": {"f": "x"}}},
        7,
    ]
    write_model(tmp_path, good_arrays(), nodes=nodes)
    graph = tfjs_file.read_graph(tmp_path)
    assert graph.operations == {"a": "Softmax", "b": "FusedBatchNormV3", "c": "Other", "d": "FusedBatchNorm"}
    assert graph.epsilons == {0.25}


# Of good_arrays: 24 + 8 + 4 + 3 + 40 bytes in shards of 20, the last of 19.
SHARDS = {
    "the second lacks": ("group1-shard2of4", None, "no such file: group1-shard2of4"),
    "the second is cut": (
        "group1-shard2of4",
        bytes(19),
        "the shards hold 78 bytes, model.json lists 79: group1-shard2of4 is cut",
    ),
    "the last is cut": (
        "group1-shard4of4",
        b"",
        "the shards hold 60 bytes, model.json lists 79: group1-shard4of4 is cut",
    ),
    "the first is too long": (
        "group1-shard1of4",
        bytes(2000),
        "the shards hold 2,059 bytes, model.json lists 79: group1-shard1of4 is too long, or of another model",
    ),
    "the last is too long": (
        "group1-shard4of4",
        bytes(20),
        "the shards hold 80 bytes, model.json lists 79: group1-shard4of4 is too long, or of another model",
    ),
}


@pytest.mark.parametrize(("name", "content", "line"), SHARDS.values(), ids=SHARDS)
def test_shards_that_do_not_fit(tmp_path, name, content, line):
    write_model(tmp_path, good_arrays())
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    assert refusal(tmp_path) == line


def test_folder_in_place_of_a_shard(tmp_path):
    content = write_model(tmp_path, {"a": np.zeros(1 << 10, np.float32)}, 1 << 20)
    (tmp_path / "folder").mkdir()
    content["weightsManifest"][0]["weights"][0]["shape"] = [(tmp_path / "folder").stat().st_size // 4]
    content["weightsManifest"][0]["paths"] = ["folder"]
    write_json(tmp_path, content)
    assert refusal(tmp_path) == "not a regular file: folder"


def test_shard_that_shrinks_while_it_is_read(tmp_path, monkeypatch):
    write_model(tmp_path, good_arrays())
    whole = fileio.read_bytes

    def cut(path, *args, **options):
        return whole(path, *args, **options)[: -1 if "shard" in path.name else None]

    monkeypatch.setattr(fileio, "read_bytes", cut)
    assert refusal(tmp_path) == "group1-shard1of4 changed while it was read"


def change(entry, **values):
    return lambda content: content["weightsManifest"][0]["weights"][entry].update(values)


def replace(content):
    return lambda old: (old.clear(), old.update(content))


CONTENTS = {
    "another JSON": (
        replace({"images": []}),
        "no TensorFlow.js model: it has no modelTopology and weightsManifest",
    ),
    "Keras layers": (
        lambda content: content.update(modelTopology={"model_config": {}}),
        "a TensorFlow.js model of Keras layers, expected a graph model (modelTopology.node)",
    ),
    "a manifest that is none": (
        lambda content: content.update(weightsManifest={}),
        "no TensorFlow.js model: it has no modelTopology and weightsManifest",
    ),
    "a group that is none": (
        lambda content: content["weightsManifest"].append([]),
        "weightsManifest: a group is expected to have paths and weights",
    ),
    "paths that are numbers": (
        lambda content: content["weightsManifest"][0].update(paths=[1]),
        "weightsManifest: a group is expected to have paths and weights",
    ),
    "no paths": (
        lambda content: content["weightsManifest"][0].update(paths=[]),
        "the shards hold 0 bytes, model.json lists 79: there are none",
    ),
    "a path with a zero byte": (
        lambda content: content["weightsManifest"][0].update(paths=["a\0b"]),
        "weightsManifest: a group is expected to have paths and weights",
    ),
    "a path outside": (
        lambda content: content["weightsManifest"][0].update(paths=["../model.json"]),
        "refused: path leaves the dataset root: ../model.json",
    ),
    "an absolute path": (
        lambda content: content["weightsManifest"][0].update(paths=["/etc/passwd"]),
        "refused: path leaves the dataset root: /etc/passwd",
    ),
    "an endless path": (
        lambda content: content["weightsManifest"][0].update(paths=["x" * 300]),
        "cannot read: file name too long: " + "x" * 80,
    ),
    "two of one name": (change(1, name="a/weights"), "weightsManifest: two weights of one name, or one without"),
    "no name": (change(1, name=None), "weightsManifest: two weights of one name, or one without"),
    "no shape": (change(1, shape=3), "b: its shape is no list of numbers"),
    "a size below zero": (change(1, shape=[-2]), "b: its shape is no list of numbers"),
    "a size that is no number": (change(1, shape=[True]), "b: its shape is no list of numbers"),
    "too many axes": (change(1, shape=[1] * 9), "b: its shape is no list of numbers"),
    "a size beyond all files": (change(1, shape=[1 << 40]), "b: its shape is no list of numbers"),
    "nothing, but of endless sides": (
        change(1, shape=[0, 1 << 39, 1 << 39]),
        "refused: b claims to hold more than 268,435,456 values",
    ),
    "texts": (change(1, dtype="string"), "b is of type string, expected float32, int32 or bool"),
    "a type that is none": (change(1, dtype=[1]), "b is of type [1], expected float32, int32 or bool"),
    "an unknown quantisation": (
        change(0, quantization={"dtype": "int4", "scale": 1, "min": 0}),
        "a/weights: quantization of an unknown kind",
    ),
    "a quantisation without scale": (
        change(0, quantization={"dtype": "uint8", "min": 0}),
        "a/weights: quantization of an unknown kind",
    ),
    "a quantisation that is none": (change(0, quantization=8), "a/weights: quantization of an unknown kind"),
    "a quantised bool": (
        change(3, quantization={"dtype": "uint8", "scale": 1, "min": 0}),
        "d: quantization of an unknown kind",
    ),
}


@pytest.mark.parametrize(("damage", "line"), CONTENTS.values(), ids=CONTENTS)
def test_models_that_are_none(tmp_path, damage, line):
    content = write_model(tmp_path, good_arrays())
    damage(content)
    write_json(tmp_path, content)
    assert refusal(tmp_path) == line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('{"modelTopology": {', "model.json: cut at byte 19"),
        ("", "model.json: cut at byte 0"),
        ('\ufeff\r\n{"a":\n 2 3}', "model.json:3:4: Expecting ',' delimiter"),
        ('{"a": "\udcff"}', "model.json is not UTF-8 (byte 0xFF at 7)"),
        ("[1,\n 2 3]", "not a TensorFlow.js model.json"),
        ("PK\3\4", "not a TensorFlow.js model.json"),
        ("\x80\x02\udc8a", "not a TensorFlow.js model.json"),
    ],
)
def test_file_that_is_no_json(tmp_path, text, line):
    (tmp_path / "model.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert refusal(tmp_path) == line
    assert refusal(tmp_path / "model.json") == line


def test_folder_without_a_model(tmp_path):
    assert refusal(tmp_path) == "no such file: model.json"
    assert refusal(tmp_path / "other.json") == "no such file: other.json"
