"""Which layers a recipe freezes, by group and up to a named one, and that these alone stay as they are."""

import keras
import numpy as np
import pytest

from ssd_tf import config as configs
from ssd_tf.api import build
from ssd_tf.errors import ConfigError
from ssd_tf.models import detector, extractor, freezing, registry

NORM = keras.layers.BatchNormalization


def branchy(image_shape, weights):
    """A stem, two branches of which one is a chain, a residual block; Keras names two of the layers."""
    image = keras.Input(image_shape)
    stem = keras.layers.Conv2D(4, 3, 4, "same", name="stem")(image)
    stem = NORM(name="stem_norm")(stem)
    left = keras.layers.Conv2D(4, 1, name="left_1")(stem)
    left = keras.layers.Conv2D(4, 3, padding="same", name="left_2")(left)
    right = keras.layers.Conv2D(4, 1, name="right")(stem)
    x = keras.layers.Concatenate(name="joined")([left, right])
    inner = keras.layers.Conv2D(8, 3, padding="same")(x)
    inner = NORM(name="inner_norm")(inner)
    x = keras.layers.Add(name="sum")([x, inner])
    x = keras.layers.Conv2D(8, 3, 2, "same", name="middle")(x)
    return keras.Model(image, keras.layers.Conv2D(8, 3, 2, "same")(x))


BRANCHY = {"backbone": "branchy", "weights": "none", "image_size": (64, 64), "levels": 4, "extras_norm": "bn"}


@pytest.fixture
def small(monkeypatch):
    """ModelConfig of "branchy", which this test alone knows; it has maps of strides 4 and 8, and extras."""
    monkeypatch.setattr(registry, "_BACKBONES", dict(registry._BACKBONES))
    registry.register_backbone("branchy", taps=("sum", "middle"), preprocessing="tf")(branchy)
    return configs.ModelConfig(**BRANCHY)


def make_detector(small):
    maps = extractor.feature_extractor(small, load_weights=False)
    return detector.build_ssd(maps, 2, [4] * len(maps.outputs), small)


def weighty(layers):
    """Names of those layers that have weights."""
    return {layer.name for layer in layers if layer.weights}


def learning(model):
    """Names of the layers that learn."""
    return {layer.name for layer in detector.all_layers(model) if layer.trainable_weights}


def all_weighty(model):
    return weighty(detector.all_layers(model))


STEM = {"stem", "stem_norm"}
JOINED = {*STEM, "left_1", "left_2", "right"}


@pytest.mark.parametrize(
    ("last", "frozen"),
    [
        ("stem", {"stem"}),
        ("stem_norm", STEM),
        ("left_1", {*STEM, "left_1"}),
        ("left_2", {*STEM, "left_1", "left_2"}),  # the branch beside it goes on learning
        ("right", {*STEM, "right"}),
        ("joined", JOINED),
        ("inner_norm", {*JOINED, "inner_norm"}),
        ("middle", {*JOINED, "inner_norm", "middle"}),
    ],
)
def test_a_named_layer_is_frozen_with_all_that_it_depends_on(small, last, frozen):
    model = make_detector(small)
    returned = freezing.freeze(model, (), last)
    counted = {name for name in all_weighty(model) if name.startswith("conv2d")}
    assert weighty(returned) - counted == frozen
    assert all_weighty(model) - learning(model) == weighty(returned)
    assert len(weighty(returned) & counted) == ("inner_norm" in frozen)  # the convolution before it


@pytest.mark.parametrize("last", ["extra_1_reduce", "extra_1", "extra_2_bn"])
def test_auxiliary_layers_take_the_whole_backbone_with_them(small, last):
    model = make_detector(small)
    before = all_weighty(model)
    backbone = {name for name in before if not name.startswith(("extra_", "head_"))}
    chain = ["extra_1_reduce", "extra_1_reduce_bn", "extra_1", "extra_1_bn"]
    chain += ["extra_2_reduce", "extra_2_reduce_bn", "extra_2", "extra_2_bn"]
    assert weighty(freezing.freeze(model, (), last)) == backbone | set(chain[: chain.index(last) + 1])


def test_the_backbone_by_its_own_name(small):
    model = make_detector(small)
    backbone = {name for name in all_weighty(model) if not name.startswith(("extra_", "head_"))}
    assert len(backbone) == 8 and weighty(freezing.freeze(model, (), "backbone")) == backbone


def test_a_head_and_the_levels_before_it(small):
    model = make_detector(small)
    freezing.freeze(model, (), "head_2_box_deltas")
    frozen = all_weighty(model) - learning(model)
    assert {"head_2_box_deltas", "stem", "middle"} <= frozen
    assert {"head_1_box_deltas", "head_2_class_logits", "extra_1_reduce", "head_3_box_deltas"} <= learning(model)


@pytest.mark.parametrize(
    ("groups", "prefixes"),
    [
        (("backbone",), ("stem", "left", "right", "inner", "middle", "conv2d")),
        (("extras",), ("extra_",)),
        (("heads",), ("head_",)),
        (("extras", "heads"), ("extra_", "head_")),
    ],
)
def test_groups(small, groups, prefixes):
    model = make_detector(small)
    expected = {name for name in all_weighty(model) if name.startswith(prefixes)}
    assert expected and weighty(freezing.freeze(model, groups)) == expected
    assert all_weighty(model) - learning(model) == expected


def test_the_neck(small):
    model = make_detector(configs.ModelConfig(**BRANCHY, neck="fpn", neck_channels=4))
    frozen = weighty(freezing.freeze(model, ("neck",)))
    assert frozen == {name for name in all_weighty(model) if name.startswith("neck_")} and len(frozen) > 3


def test_groups_and_a_layer_together(small):
    model = make_detector(small)
    heads = {name for name in all_weighty(model) if name.startswith("head_")}
    assert weighty(freezing.freeze(model, ("heads",), "stem_norm")) == heads | STEM


def refused(model, groups, last=""):
    with pytest.raises(ConfigError) as caught:
        freezing.freeze(model, groups, last)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_frozen_is_one_line(small):
    model = make_detector(small)
    missing = "train.freeze_to: this network has no layer"
    assert refused(model, (), "stem_nrm") == f"{missing} 'stem_nrm' (did you mean stem_norm?)"
    assert refused(model, (), "extra_1_reduc") == f"{missing} 'extra_1_reduc' (did you mean extra_1_reduce?)"
    assert refused(model, (), "xyz\n") == f"{missing} 'xyz\\n'"
    assert refused(model, (), "99") == "train.freeze_to: the backbone has no layer 99: it has 11"
    there = "(it has: backbone, extras, heads)"
    assert refused(model, ("neck",)) == f"train.freeze: this network has no layers of the group neck {there}"
    assert learning(model) == all_weighty(model)  # nothing was frozen meanwhile
    groups = ("backbone", "extras", "heads")
    assert refused(model, groups) == "nothing of this network would learn: train.freeze=backbone,extras,heads"
    message = "nothing of this network would learn: train.freeze=heads and train.freeze_to=extra_2_bn"
    assert refused(make_detector(small), ("heads",), "extra_2_bn") == message


def test_layers_that_keras_names_are_called_by_their_index_in_the_backbone(small):
    indices = []
    for _ in range(2):  # the names of the second build are others
        model = make_detector(small)
        layers = model.get_layer("backbone").layers
        counted = next(layer for layer in layers if layer.name.startswith("conv2d"))
        index = layers.index(counted)
        message = refused(model, (), counted.name)
        assert message.startswith(f"train.freeze_to: the backbone: Keras counts the name '{counted.name}' up")
        assert message.endswith(f"give the index, {index}")
        frozen = weighty(freezing.freeze(model, (), str(index)))
        assert frozen == {*JOINED, counted.name}
        indices.append((index, counted.name))
    assert indices[0][0] == indices[1][0] and indices[0][1] != indices[1][1]
    model = make_detector(small)
    assert weighty(freezing.freeze(model, (), "-1")) >= {*JOINED, "middle"}


def test_names_that_keras_counts_up_outside_the_backbone_are_unknown(small):
    """Their index would mean a layer of the backbone."""
    model = make_detector(small)
    first, second = keras.layers.Dense(1, name="mine"), keras.layers.Dense(1)
    longer = keras.Model(model.inputs, second(first(model.output["box_deltas"])))
    assert refused(longer, (), second.name).startswith(
        f"train.freeze_to: this network has no layer '{second.name}'"
    )
    assert "mine" in weighty(freezing.freeze(longer, (), "mine"))


def test_both_paths_of_a_dual_path_are_one_set_of_layers(small):
    settings = configs.ModelConfig(
        **BRANCHY, remove_stride_at=("stem",), dual_path=True, taps=("stem_norm", "sum")
    )
    model = make_detector(settings)
    assert weighty(freezing.freeze(model, (), "left_2")) == {*STEM, "left_1", "left_2"}


@pytest.mark.parametrize("kind", ["functional", "sequential"])
def test_models_inside_the_backbone_are_opened(small, kind):
    """What the outer one has before the inner one counts, what the inner one has behind the layer does not."""

    def nested(image_shape, weights):
        image = keras.Input(image_shape)
        x = keras.layers.Conv2D(4, 3, 8, "same", name="outer_stem")(image)
        layers = [keras.layers.Conv2D(4, 1, name=f"inner_{index}") for index in range(3)]
        inner = keras.Sequential([keras.Input((None, None, 4)), *layers], name="inner")
        if kind == "functional":
            inner = keras.Model(inner.inputs[0], inner.outputs[0], name="inner")
        x = keras.layers.Conv2D(4, 1, name="outer_middle")(inner(x))
        return keras.Model(image, keras.layers.Conv2D(4, 3, 2, "same", name="outer_last")(x))

    registry.register_backbone("nested", taps=("outer_middle", "outer_last"))(nested)
    settings = configs.ModelConfig(backbone="nested", weights="none", image_size=(64, 64))
    expected = {"inner_1": {"outer_stem", "inner_0", "inner_1"}, "outer_stem": {"outer_stem"}}
    inner = {"outer_stem", "inner_0", "inner_1", "inner_2"}
    for last, frozen in {**expected, "inner": inner, "outer_middle": {*inner, "outer_middle"}}.items():
        model = make_detector(settings)
        assert weighty(freezing.freeze(model, (), last)) == frozen == all_weighty(model) - learning(model)


def test_layers_behind_another_models_use_of_them_do_not_count(small):
    """A layer of the network that somebody else calls again depends on nothing more for that."""
    model = make_detector(small)
    other = keras.Input((16, 16, 4))
    middle = keras.layers.Conv2D(4, 1, name="elsewhere")(other)
    keras.Model(other, model.get_layer("backbone").get_layer("left_1")(middle))
    assert weighty(freezing.freeze(model, (), "left_1")) == {*STEM, "left_1"}


@pytest.mark.parametrize(
    ("settings", "last"),
    [
        ({"backbone": "mobilenet_v2", "width": 0.35}, "block_6_project_BN"),
        ({"backbone": "mobilenet_v2", "width": 0.35}, "block_5_add"),
        ({"backbone": "resnet50_v2"}, "conv3_block2_out"),
        ({"backbone": "InceptionV3", "taps": ("mixed2", "mixed7", "mixed10")}, "mixed1"),
        ({"backbone": "InceptionV3", "taps": ("mixed2", "mixed7", "mixed10")}, "37"),  # in a branch of mixed0
    ],
)
def test_known_networks_against_keras_own_sub_model(settings, last):
    model = extractor.feature_extractor(
        configs.ModelConfig(**settings, weights="none", image_size=(96, 96)), False
    )
    body = model.get_layer("backbone")
    layer = body.layers[int(last)] if last.isdigit() else body.get_layer(last)
    expected = weighty(keras.Model(body.inputs, layer.output).layers)
    assert weighty(freezing.freeze(model, (), last)) == expected
    assert 0 < len(expected) < len(weighty(body.layers)) / 2
    assert all_weighty(model) - learning(model) == expected


@pytest.mark.parametrize(
    ("groups", "last"), [((), "left_2"), (("backbone",), ""), (("extras",), "stem_norm"), (("heads",), "")]
)
def test_frozen_layers_stay_bit_equal_and_all_others_move(small, groups, last):
    """Weights and the statistics of batch norms, through three steps."""
    keras.utils.set_random_seed(3)
    model = make_detector(small)
    detector.set_batch_norm(model, 0.9, freeze_backbone=False)
    frozen = weighty(freezing.freeze(model, groups, last))
    model.compile(keras.optimizers.SGD(0.01), loss="mean_squared_error", run_eagerly=True)
    before = {weight.path: weight.numpy() for weight in model.weights}
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 64, 64, 3), np.uint8)
    targets = {key: rng.normal(size=value.shape[1:])[None].repeat(2, 0) for key, value in model.output.items()}
    for _ in range(3):
        model.train_on_batch(images, targets)
    norms = 0
    for layer in detector.all_layers(model):
        for weight in layer.weights:
            same = np.array_equal(before[weight.path], weight.numpy())
            # A shift that a batch norm takes away again has no gradient, or one of rounding.
            still = weight.name == "bias" and layer.name in ("stem", "left_1", "left_2", "right")
            assert same == (layer.name in frozen) or (still and layer.name not in frozen), weight.path
        norms += isinstance(layer, NORM) and layer.name in frozen
    assert norms == {"left_2": 1, "stem_norm": 5, "": 2 if groups == ("backbone",) else 0}[last]


def train_config(**train):
    return configs.TrainConfig(**train)


def test_check_needs_no_heads(small):
    maps = extractor.feature_extractor(small, load_weights=False)
    freezing.check(maps, train_config(freeze=("heads",), freeze_to="stem"))
    freezing.check(maps, train_config(freeze_to="head_1_class_logits"))
    freezing.check(maps, train_config(heads_rate=2.0, extras_rate=3.0, backbone_rate=0.1))


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"freeze_to": "sten"}, r"^train\.freeze_to: this network has no layer 'sten' \(did you mean stem\?\)$"),
        ({"freeze": ("neck",)}, r"^train\.freeze: this network has no layers of the group neck"),
        (
            {"neck_rate": 2.0},
            r"^train\.neck_rate: this network has no layers of the group neck \(it",
        ),
        ({"freeze": ("backbone", "extras", "heads")}, r"^nothing of this network would learn"),
        ({"freeze": ("heads",), "freeze_to": "extra_2_bn"}, r"^nothing of this network would learn"),
    ],
)
def test_before_weights_or_data_are_read(small, train, message):
    config = configs.replace(
        configs.Config(model=small), **{f"train__{key}": value for key, value in train.items()}
    )
    with pytest.raises(ConfigError, match=message):
        build.check(config)


def test_extras_that_are_not_there():
    settings = configs.ModelConfig(
        backbone="mobilenet_v2", width=0.35, image_size=(64, 64), weights="none", levels=2
    )
    maps = extractor.feature_extractor(settings, load_weights=False)
    with pytest.raises(ConfigError, match=r"no layers of the group extras \(it has: backbone, heads\)"):
        freezing.freeze(maps, ("extras",))
