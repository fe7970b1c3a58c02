"""From a recipe to feature maps: taps, levels, auxiliary layers, and what is refused."""

import dataclasses
import re

import keras
import numpy as np
import pytest
from backbone_cases import make_config

from ssd_tf import config as configs
from ssd_tf.api import build
from ssd_tf.errors import ConfigError
from ssd_tf.models import layers, registry
from ssd_tf.models.detector import all_layers
from ssd_tf.models.extractor import feature_extractor


def test_number_of_levels():
    settings = make_config("mobilenet_v2", 300, model__levels=4).model
    assert build.map_sizes(feature_extractor(settings)) == ((38, 38), (19, 19), (10, 10), (5, 5))
    settings = make_config("mobilenet_v2", 300, model__levels=9).model
    with pytest.raises(ConfigError, match=r"model\.levels=9: mobilenet_v2 at 300x300 has 6 levels"):
        feature_extractor(settings)


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
    extractor = feature_extractor(make_config("small", 64).model)
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
    with pytest.raises(ConfigError, match=r"preprocessing 'caffee' is none of .*did you mean caffe"):
        registry.register_backbone("other", taps=("fine",), preprocessing="caffee")


def test_unknown_backbone_names_a_near_one():
    with pytest.raises(ConfigError, match=r"unknown backbone 'mobilnet_v2' \(did you mean mobilenet_v2\?\)"):
        registry.get_backbone("mobilnet_v2")


@pytest.mark.usefixtures("fresh_registry")
def test_unknown_tap_names_a_near_one():
    registry.register_backbone("small", taps=("fine", "corse"))(small_network)
    with pytest.raises(ConfigError, match=r"'small' has no layer 'corse' \(did you mean coarse\?\)"):
        feature_extractor(make_config("small", 64).model)


@pytest.mark.usefixtures("fresh_registry")
def test_integer_taps_count_layers():
    registry.register_backbone("small", taps=(1, -1))(small_network)  # 0 is the input
    extractor = feature_extractor(make_config("small", 64).model)
    assert [output.shape[-1] for output in extractor.outputs[:2]] == [4, 8]
    registry.register_backbone("far", taps=(99,))(small_network)
    with pytest.raises(ConfigError, match="'far' has no layer 99"):
        feature_extractor(make_config("far", 64).model)


@pytest.mark.usefixtures("fresh_registry")
def test_taps_out_of_order_are_refused():
    registry.register_backbone("small", taps=("coarse", "fine"))(small_network)
    with pytest.raises(ConfigError, match=r"taps out of order: a \(32, 32\) map follows a \(8, 8\) one"):
        feature_extractor(make_config("small", 64).model)


@pytest.mark.usefixtures("fresh_registry")
def test_listed_extras_replace_the_rule():
    extras = (layers.Extra(3, 5), layers.Extra(3, 7))
    registry.register_backbone("small", taps=("coarse",), extras=extras)(small_network)
    extractor = feature_extractor(make_config("small", 64).model)
    assert [output.shape[1:] for output in extractor.outputs] == [(8, 8, 8), (4, 4, 5), (2, 2, 7)]


@pytest.mark.usefixtures("fresh_registry")
def test_chain_of_a_recipe_replaces_the_rule_and_the_backbones_own():
    registry.register_backbone("small", taps=("coarse",))(small_network)
    registry.register_backbone("listed", taps=("coarse",), extras=(layers.Extra(3, 5),))(small_network)
    chain = ((2, 6, 3, 2, 1), (3, 7, 4, 1, 1), (4, 9, 3, 1, 0), (1, 10, 1, 1, 0))
    for backbone in ("small", "listed"):
        settings = configs.replace(make_config(backbone, 64), model__extras_chain=chain).model
        extractor = feature_extractor(settings)
        maps = [(8, 8, 8), (4, 4, 6), (3, 3, 7), (1, 1, 9), (1, 1, 10)]
        assert [output.shape[1:] for output in extractor.outputs] == maps
        kernels = [
            extractor.get_layer(f"extra_{i}{part}").kernel.shape for i in (1, 2) for part in ("_reduce", "")
        ]
        assert kernels == [(1, 1, 8, 2), (3, 3, 2, 6), (1, 1, 6, 3), (4, 4, 3, 7)]
        fewer = feature_extractor(dataclasses.replace(settings, levels=2))
        assert [output.shape[1:] for output in fewer.outputs] == maps[:2]
        with pytest.raises(ConfigError, match=r"model\.levels=6: .* at 64x64 has 5 levels"):
            feature_extractor(dataclasses.replace(settings, levels=6))


def test_chain_of_separable_extras():
    chain, extras = ((16, 24, 3, 2, 1), (8, 12, 2, 1, 0)), {"model__extras": "separable"}
    config = make_config("mobilenet_v2", 96, model__extras_chain=chain, **extras)
    extractor = feature_extractor(config.model)
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
        feature_extractor(config.model, load_weights=False)
    assert str(error.value) == f"model.extras_chain: {message}"


def test_chain_is_checked_on_both_sides_of_a_map():
    settings = make_config("mobilenet_v2", model__extras_chain=((2, 4, 4, 1, 0),)).model
    for size, shape in (((128, 96), "4x3"), ((96, 128), "3x4")):
        with pytest.raises(ConfigError, match=f"kernel 4 does not fit a {shape} map"):
            feature_extractor(dataclasses.replace(settings, image_size=size), load_weights=False)


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


@pytest.mark.usefixtures("fresh_registry")
def test_taps_of_a_recipe_replace_the_backbones_own():
    registry.register_backbone("small", taps=("coarse",))(small_network)
    extractor = feature_extractor(make_config("small", 64, model__taps=("fine", "-2"), model__levels=2).model)
    assert [output.shape[-1] for output in extractor.outputs] == [4, 6]


@pytest.mark.usefixtures("fresh_registry")
def test_taps_that_keras_counts_up_are_refused_with_their_index():
    def automatic(image_shape, weights):
        image = keras.Input(image_shape)
        return keras.Model(image, keras.layers.Conv2D(4, 3, strides=2)(image))

    name = automatic((64, 64, 3), None).layers[1].name
    registry.register_backbone("automatic", taps=("other",))(automatic)
    again = re.sub(r"(_\d+)?$", f"_{int(name.partition('conv2d_')[2] or 0) + 1}", name, count=1)
    settings = make_config("automatic", 64, model__taps=(again,)).model
    with pytest.raises(ConfigError, match=rf"'automatic': Keras counts the name '{again}' up, .*index, 1$"):
        feature_extractor(settings)


@pytest.mark.usefixtures("fresh_registry")
def test_layouts_tap_elsewhere_and_follow_another_layer():
    other = registry.Layout(
        ("fine",), (layers.Extra(3, 5), layers.Extra(3, 7, stride=1, padding=0)), "coarse", (0.5,)
    )
    registry.register_backbone("small", taps=("coarse",), layouts={"other": other})(small_network)
    extractor = feature_extractor(make_config("small", 64, model__layout="other").model)
    assert [output.shape[1:] for output in extractor.outputs] == [(32, 32, 4), (4, 4, 5), (2, 2, 7)]
    # At 32 px the map before the second one is too small for it.
    extractor = feature_extractor(make_config("small", 32, model__layout="other").model)
    assert [output.shape[1:] for output in extractor.outputs] == [(16, 16, 4), (2, 2, 5)]
    with pytest.raises(
        ConfigError, match=r"small has no layout 'othr' \(did you mean other\?\); it has: default, other"
    ):
        feature_extractor(make_config("small", 64, model__layout="othr").model)


@pytest.mark.usefixtures("fresh_registry")
def test_anchor_sizes_of_a_layout_count_where_the_recipe_gives_none():
    sizes = (0.3, 0.5, 0.7)
    layout = registry.Layout(("fine", "coarse"), (), anchor_sizes=sizes)
    registry.register_backbone("small", taps=("coarse",), layouts={"other": layout})(small_network)
    config = make_config("small", 64, model__layout="other")
    heights = [np.diff(build.build_anchors(config)[at, [0, 2]]).item() for at in (0, 4 * 32 * 32)]
    np.testing.assert_allclose(heights, (0.3, 0.5), atol=1e-6)
    own = configs.replace(config, anchors__sizes=(0.1, 0.2, 0.4))
    np.testing.assert_allclose(np.diff(build.build_anchors(own)[0, [0, 2]]), 0.1, atol=1e-6)


@pytest.mark.usefixtures("fresh_registry")
def test_functions_get_the_options_that_they_name():
    seen = []

    def optional(image_shape, weights, layout="default", width=1.0):
        seen.append((layout, width))
        return small_network(image_shape, weights)

    layouts = {"other": registry.Layout(("fine",))}
    registry.register_backbone("optional", taps=("coarse",), layouts=layouts)(optional)
    assert registry.get_backbone("optional").options == ("width", "layout")
    feature_extractor(make_config("optional", 64, model__layout="other", model__width=0.5).model)
    assert seen == [("other", 0.5)]


@pytest.mark.usefixtures("fresh_registry")
@pytest.mark.parametrize(
    ("taps", "message"),
    [
        (("flat",), r"backbone 'small': layer 'flat' gives no map of rows and columns"),
        (("fine", "1"), r"backbone 'small': a layer is tapped twice: fine, 1"),
        (("--5",), r"backbone 'small' has no layer '--5'"),
        (("²",), r"backbone 'small' has no layer '²'"),
    ],
)
def test_taps_that_are_no_maps_or_no_layers(taps, message):
    def with_classifier(image_shape, weights):
        model = small_network(image_shape, weights)
        return keras.Model(model.inputs[0], keras.layers.Flatten(name="flat")(model.outputs[0]))

    registry.register_backbone("small", taps=("fine",))(with_classifier)
    with pytest.raises(ConfigError, match=message):
        feature_extractor(make_config("small", 64, model__taps=taps).model)


@pytest.mark.usefixtures("fresh_registry")
def test_function_that_returns_nothing():
    registry.register_backbone("empty", taps="fine")(lambda image_shape, weights: None)
    assert registry.get_backbone("empty").layouts["default"].taps == ("fine",)
    with pytest.raises(ConfigError, match=r"'empty': its function returns a NoneType, not a keras\.Model"):
        feature_extractor(make_config("empty", 64).model)


def test_application_under_mixed_precision():
    taps = ("conv_pw_5_relu", "conv_pw_11_relu")
    config = make_config("MobileNet", 64, model__taps=taps)
    assert build.build(config, precision="mixed_bfloat16").map_sizes[:2] == ((8, 8), (4, 4))
