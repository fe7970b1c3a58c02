"""Keras weights files of both formats are listed, compared with networks and read as Keras itself would."""

import h5py
import keras
import numpy as np
import pytest
from keras import layers

from ssd_tf import weight_files
from ssd_tf.errors import DataError


def make_network(filters=4, classes=5):
    """Every kind of layer with weights that networks have here, an inner model, and a layer with random state."""
    image = keras.Input((8, 8, 3))
    x = layers.Normalization(name="scale")(image)
    x = layers.Conv2D(filters, 3, name="first")(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU()(x)
    parts = [layers.BatchNormalization(name="even"), layers.Conv2D(2, 1, use_bias=False, name="deep")]
    inner = keras.Sequential([keras.Input((6, 6, filters)), *parts], name="inner")
    x = layers.Dropout(0.5)(inner(x))
    for index in range(11):  # so that 10 follows 9, not 1
        x = layers.DepthwiseConv2D(1, name=f"wise_{index}")(x)
    x = layers.SeparableConv2D(6, 3, name="apart")(x)
    return keras.Model(image, layers.Dense(classes, name="last")(x))


def randomize(model, seed=0):
    """Gives every weight numbers of its own."""
    generator = np.random.default_rng(seed)
    for layer in model.layers:
        layer.set_weights([generator.uniform(0.1, 1, w.shape).astype(w.dtype) for w in layer.get_weights()])
    return model


def save(model, kind, folder):
    """Writes a model's weights in one of the formats that Keras reads; returns the file."""
    path = folder / {"new": "a.weights.h5", "whole": "a.h5", "old": "old.h5"}[kind]
    if kind == "new":
        model.save_weights(path)
    elif kind == "whole":
        model.save(path)
    else:
        write_old(path, named_weights(model.layers))
    return path


def write_old(path, named):
    """Writes the format of Keras 1 and 2, with the long lists of names spread over several attributes."""
    with h5py.File(path, "w") as file:
        names = [name for name, _ in named]
        file.attrs["layer_names0"] = [name.encode() for name in names[:5]]
        file.attrs["layer_names1"] = [name.encode() for name in names[5:]]
        for name, weights in named:
            group = file.create_group(name)
            group.attrs["weight_names"] = [f"{name}/{w.name}:0".encode() for w in weights]
            for weight in weights:
                group[f"{name}/{weight.name}:0"] = np.asarray(weight)


def named_weights(some_layers):
    """What the older format holds of layers: what is not trained comes last, in an inner model too."""
    return [(layer.name, [*layer.trainable_weights, *layer.non_trainable_weights]) for layer in some_layers]


def fill(model, path):
    for weight, array in weight_files.read_weights(path, model):
        weight.assign(array)
    return model


@pytest.fixture(scope="module")
def network():
    return randomize(make_network())


def test_tensors_of_the_new_format(network, tmp_path):
    found = weight_files.list_tensors(save(network, "new", tmp_path))
    assert list(found.items())[:7] == [
        ("layers/batch_normalization/vars/0", (4,)),
        ("layers/batch_normalization/vars/1", (4,)),
        ("layers/batch_normalization/vars/2", (4,)),
        ("layers/batch_normalization/vars/3", (4,)),
        ("layers/conv2d/vars/0", (3, 3, 3, 4)),
        ("layers/conv2d/vars/1", (4,)),
        ("layers/dense/vars/0", (6, 5)),
    ]
    places = [name for name in found if name.startswith("layers/depthwise") and name.endswith("0")]
    assert places[:3] == [f"layers/depthwise_conv2d{i}/vars/0" for i in ("", "_1", "_2")]
    assert places[-2:] == [f"layers/depthwise_conv2d_{i}/vars/0" for i in (9, 10)]
    assert found["layers/normalization/vars/2"] == ()
    assert found["layers/sequential/layers/conv2d/vars/0"] == (1, 1, 4, 2)
    assert len(found) == len(network.weights) == 3 + 2 + 4 + 4 + 1 + 22 + 3 + 2  # none of the dropout's state


@pytest.mark.parametrize("kind", ["old", "whole"])
def test_tensors_of_the_old_format(kind, network, tmp_path):
    found = weight_files.list_tensors(save(network, kind, tmp_path))
    saved = [weight for _, weights in named_weights(network.layers) for weight in weights]
    assert list(found.values()) == [tuple(weight.shape) for weight in saved]
    assert [name.removesuffix(":0") for name in found][3:6] == ["first/kernel", "first/bias", "norm/gamma"]


def test_an_optimizers_state_is_left_out(tmp_path):
    model = make_network()
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    for kind in ("new", "whole"):
        path = save(model, kind, tmp_path)
        with h5py.File(path) as file:
            assert {"new": "optimizer", "whole": "optimizer_weights"}[kind] in file
        assert len(weight_files.list_tensors(path)) == len(model.weights)
        assert weight_files.find_differences(path, model) == []


@pytest.mark.parametrize("kind", ["new", "old", "whole"])
def test_what_is_read_is_what_was_saved(kind, network, tmp_path):
    path = save(network, kind, tmp_path)
    found = make_network()
    assert weight_files.find_differences(path, found) == []
    fill(found, path)
    for old, new in zip(network.get_weights(), found.get_weights(), strict=True):
        assert np.array_equal(old, new)


def test_keras_reads_the_same(network, tmp_path):
    for kind in ("new", "old", "whole"):
        path = save(network, kind, tmp_path)
        ours, theirs = fill(make_network(), path), make_network()
        theirs.load_weights(path)
        for one, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
            assert np.array_equal(one, other)


@pytest.mark.parametrize("kind", ["new", "old"])
def test_the_files_name_does_not_matter(kind, network, tmp_path):
    path = save(network, kind, tmp_path).rename(tmp_path / {"new": "a.h5", "old": "a.weights.h5"}[kind])
    assert np.array_equal(fill(make_network(), path).get_layer("last").bias, network.get_layer("last").bias)


def test_what_earlier_versions_of_keras_3_wrote(network, tmp_path):
    path = save(network, "new", tmp_path)
    with h5py.File(path, "a") as file:
        file["layers/dropout/seed_generator/vars/0"] = np.zeros(2, np.uint32)
        file.move("layers", "_layer_checkpoint_dependencies")
    assert weight_files.find_differences(path, network) == []


@pytest.mark.parametrize("kind", ["new", "old", "whole"])
def test_differences_of_shape(kind, network, tmp_path):
    path = save(network, kind, tmp_path)
    names = ["gamma", "beta", "moving_mean", "moving_variance"]
    even = [f"{'even' if kind == 'new' else 'inner'}/{name} is 4 in the file, expected 6" for name in names]
    deep = [f"{'deep' if kind == 'new' else 'inner'}/kernel is 1x1x4x2 in the file, expected 1x1x6x2"]
    assert weight_files.find_differences(path, make_network(filters=6)) == [
        "first/kernel is 3x3x3x4 in the file, expected 3x3x3x6",
        "first/bias is 4 in the file, expected 6",
        *[f"norm/{name} is 4 in the file, expected 6" for name in names],
        *([*even, *deep] if kind == "new" else [*even[:2], *deep, *even[2:]]),
    ]


def test_a_tensor_that_is_missing_and_one_too_many(network, tmp_path):
    path = save(network, "new", tmp_path)
    with h5py.File(path, "a") as file:
        del file["layers/depthwise_conv2d_10/vars/1"]
        file["layers/dense_1/vars/0"] = np.zeros((2, 3))
        file["layers/normalization/vars/2"][()] = 3
        del file["layers/normalization/vars/0"]
        file["layers/normalization/vars/0"] = np.float32(1)
    assert weight_files.find_differences(path, network) == [
        "scale/mean is one number in the file, expected 3",
        "wise_10/bias is missing",
        "layers/dense_1/vars/0 is not part of the network",
    ]
    with pytest.raises(DataError, match=r"^weights do not fit: scale/mean is .*, expected 3: .*a\.weights\.h5$"):
        fill(make_network(), path)


def test_a_layer_that_is_missing_in_the_middle(network, tmp_path):
    """Position alone would report every layer after it."""
    path = tmp_path / "old.h5"
    write_old(path, named_weights(layer for layer in network.layers if layer.name != "wise_3"))
    assert weight_files.find_differences(path, network) == [
        "wise_3/kernel is missing",
        "wise_3/bias is missing",
    ]


def test_other_names_at_the_same_places(network, tmp_path):
    """Keras numbers layers anew in every session: only their order counts, in the old format."""
    path = tmp_path / "old.h5"
    renamed = [(f"l{index}", weights) for index, (_, weights) in enumerate(named_weights(network.layers))]
    write_old(path, renamed)
    assert weight_files.find_differences(path, network) == []
    write_old(path, [*renamed, ("l99", network.layers[-1].weights)])
    assert weight_files.find_differences(path, network) == [
        f"l99/{name}:0 is not part of the network" for name in ("kernel", "bias")
    ]


def test_the_old_format_by_position_with_tensors_missing(network, tmp_path):
    path = save(network, "old", tmp_path)
    with h5py.File(path, "a") as file:
        del file["first/first/bias:0"]  # named, but not there
        file["last"].attrs["weight_names"] = [b"last/kernel:0"]
        file["scale"].attrs["weight_names"] = [b"mean:0", b"variance:0", b"count:0", b"more:0"]
        for name in ("mean:0", "variance:0", "count:0", "more:0"):
            file[f"scale/{name}"] = np.zeros([] if name == "count:0" else 3)
    assert weight_files.find_differences(path, network) == [
        "first/bias is missing",
        "last/bias is missing",
        "scale/more:0 is not part of the network",
    ]


def test_a_file_without_any_layer(network, tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["kernel"] = np.zeros(3)
    assert weight_files.list_tensors(tmp_path / "a.h5") == {}
    found = weight_files.find_differences(tmp_path / "a.h5", network)
    assert found[0] == "scale/mean is missing" and len(found) == len(network.weights)


@pytest.mark.parametrize(
    "function", [weight_files.list_tensors, lambda path: weight_files.find_differences(path, None)]
)
def test_links_are_not_followed(function, tmp_path):
    for link in (h5py.ExternalLink("secret.h5", "/x"), h5py.SoftLink("/layers/conv2d")):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.attrs["layer_names"] = [b"first"]
            file.create_group("first").attrs["weight_names"] = [b"kernel"]
            file["first/kernel"] = link
        with pytest.raises(DataError, match=r"^refused: kernel is a link: .*a\.h5$"):
            function(tmp_path / "a.h5")


@pytest.mark.parametrize(
    "names",
    [
        [b"/", b"..", b"no\xff", b"/first"],
        np.zeros((2, 2)),
        np.void(b"cos\nsystem"),
        h5py.Empty("f4"),
        ["first"] * 9,
    ],
)
def test_names_that_lead_nowhere(names, tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs["layer_names"] = names
        file.create_group("first").attrs["weight_names"] = names
        file["first"].create_dataset("first", data=np.zeros(2))
    found = weight_files.list_tensors(tmp_path / "a.h5")
    assert found == ({"first/first": (2,)} if isinstance(names, list) and len(names) == 9 else {})


def test_names_that_are_repeated_are_looked_up_once(network, tmp_path, monkeypatch):
    """A list of names as long as the file, of a layer whose list is as long, would take for ever."""
    path, asked = save(network, "old", tmp_path), []
    with h5py.File(path, "a") as file:
        file.attrs["layer_names"] = [b"first"] * 50
    read_names = weight_files._read_names
    monkeypatch.setattr(
        weight_files, "_read_names", lambda *asking: (asked.append(asking[1]), read_names(*asking))[1]
    )
    assert list(weight_files.list_tensors(path)) == ["first/kernel:0", "first/bias:0"]
    assert asked == ["layer_names", "weight_names"]


def test_groups_in_groups_without_end(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as group:
        for _ in range(60):
            group = group.create_group("x" * 100)
    for function in (weight_files.list_tensors, weight_files.check_weights_file):
        with pytest.raises(DataError, match=r"^refused: groups in groups without end: .*a\.h5$"):
            function(tmp_path / "a.h5")


def test_numbers_that_are_none(network, tmp_path):
    path = save(network, "new", tmp_path)
    with h5py.File(path, "a") as file:
        del file["layers/conv2d/vars/1"]
        file["layers/conv2d/vars/1"] = np.array([b"abcd"] * 4)
    with pytest.raises(DataError, match=r"^/layers/conv2d/vars/1 holds no numbers: .*a\.weights\.h5$"):
        fill(make_network(), path)


def test_a_file_that_was_cut_short(network, tmp_path):
    path = save(network, "new", tmp_path)
    path.write_bytes(path.read_bytes()[:-200])
    for function in (weight_files.list_tensors, lambda file: weight_files.find_differences(file, network)):
        with pytest.raises(DataError, match=r"^cannot read HDF5: .*truncated file.*a\.weights\.h5$"):
            function(path)


@pytest.mark.parametrize(
    "kind",
    [
        "Conv2D",
        "Conv2DTranspose",
        "BatchNormalization",
        "PReLU",
        "ReLU",
        "ZeroPadding2D",
        "LayerNormalization",
        "Dense",
    ],
)
def test_places_are_named_after_classes_as_keras_does(kind, tmp_path):
    options = {"Conv2D": (2, 1), "Conv2DTranspose": (2, 1), "Dense": (2,)}.get(kind, ())
    model = keras.Sequential(
        [keras.Input((4, 4, 3)), getattr(layers, kind)(*options), getattr(layers, kind)(*options)]
    )
    model.save_weights(tmp_path / "a.weights.h5")
    with h5py.File(tmp_path / "a.weights.h5") as file:
        found = sorted(file["layers"])
    assert found == [path.removeprefix("layers/") for path, _ in weight_files._leaves(model.layers, "layers")]
