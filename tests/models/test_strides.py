"""Stride removal and dual path: which maps come out, that the weights stay, and what each path sees."""

import keras
import numpy as np
import pytest
from backbone_cases import make_config, random_batch

from ssd_tf.api import build
from ssd_tf.errors import ConfigError
from ssd_tf.models import strides
from ssd_tf.models.extractor import feature_extractor
from ssd_tf.models.mobilenet import mobilenet_v1
from ssd_tf.models.vgg import vgg16

PAPER_TAPS = ("conv_pw_11_relu", "conv_pw_13_relu")


def maps_of(**leaves):
    leaves = {f"model__{key}": value for key, value in leaves.items()}
    config = make_config(leaves.pop("model__backbone"), 300, **leaves)
    return tuple(rows for rows, _ in build.build_map_sizes(config))


@pytest.mark.parametrize(
    ("backbone", "taps", "removed", "expected"),
    [
        ("mobilenet_v1", PAPER_TAPS, (), (19, 10, 5, 3, 1)),
        ("mobilenet_v1", PAPER_TAPS, ("conv1",), (38, 19, 10, 5, 3, 1)),  # S1L0
        ("mobilenet_v1", PAPER_TAPS, ("conv_dw_4",), (38, 19, 10, 5, 3, 1)),  # S1L4
        ("mobilenet_v1", PAPER_TAPS, ("conv1", "conv_dw_6"), (75, 38, 19, 10, 5, 3, 1)),  # S2L0_6
        ("mobilenet_v1", (), ("conv1",), (75, 38, 19, 10, 5, 3, 1)),
        ("vgg16", (), ("block1_pool",), (75, 38, 19, 10, 5, 3, 1)),  # S1L2
        ("vgg16", (), ("block1_pool", "block2_pool"), (150, 75, 38, 19, 10, 5, 3, 1)),
    ],
)
def test_maps_without_strides(backbone, taps, removed, expected):
    assert maps_of(backbone=backbone, taps=taps, remove_stride_at=removed) == expected


@pytest.mark.parametrize(
    ("backbone", "taps", "removed", "expected"),
    [
        ("mobilenet_v1", PAPER_TAPS, ("conv1",), (38, 19, 5, 3, 1)),  # steps 8, 16, 64, 100, 300 in the paper
        ("vgg16", (), ("block1_pool",), (75, 38, 10, 5, 3, 1)),  # steps 4, 8, 32, 64, 100, 300
    ],
)
def test_maps_of_two_paths(backbone, taps, removed, expected):
    assert maps_of(backbone=backbone, taps=taps, remove_stride_at=removed, dual_path=True) == expected


def outputs_of(model, names, image):
    probe = keras.Model(model.inputs[0], [model.get_layer(name).output for name in names])
    return [np.asarray(output) for output in probe(image)]


def test_features_without_a_stride_hold_those_with_it():
    """On an even side "same" starts a stride-2 window one pixel later than a stride-1 window."""
    image = np.random.default_rng(0).uniform(-1, 1, (1, 64, 64, 3)).astype(np.float32)
    before = mobilenet_v1((64, 64, 3), None, width=0.25)
    after = strides.remove_strides(before, ("conv1",))
    (_, coarse), (_, fine) = (outputs_of(model, ("conv1", "conv1_relu"), image) for model in (before, after))
    assert fine.shape == (1, 64, 64, 8)
    np.testing.assert_allclose(fine[:, 1::2, 1::2], coarse, atol=1e-6)
    for one, other in zip(before.get_weights(), after.get_weights(), strict=True):
        assert np.array_equal(one, other)


def test_a_pool_without_its_stride_is_the_identity():
    image = np.random.default_rng(0).uniform(-99, 99, (1, 32, 32, 3)).astype(np.float32)
    model = strides.remove_strides(vgg16((32, 32, 3), None), ("block1_pool",))
    before, after = outputs_of(model, ("block1_conv2", "block1_pool"), image)
    assert np.array_equal(before, after)


@pytest.mark.parametrize("side", [128, 129])
def test_second_path_is_the_network_with_its_stride(side):
    """Also on an odd side, where "same" puts the windows of a stride of 2 at the even pixels."""
    leaves = {"model__width": 0.25, "model__taps": PAPER_TAPS, "model__levels": 2}
    split = {"model__remove_stride_at": ("conv1",), "model__dual_path": True}
    plain, double = (
        feature_extractor(make_config("mobilenet_v1", side, **leaves, **more).model).get_layer("backbone")
        for more in ({}, split)
    )
    assert len(plain.outputs) == 2
    plain.set_weights(double.get_weights())
    pixels = np.random.default_rng(1).uniform(-1, 1, (1, side, side, 3)).astype(np.float32)
    fine, coarse, low = (np.asarray(output) for output in double(pixels))
    assert [feature.shape[1] for feature in (fine, coarse, low)] == [
        (side + 7) // 8,
        (side + 15) // 16,
        (side + 31) // 32,
    ]
    np.testing.assert_allclose(low, plain(pixels)[1], atol=1e-5)


def test_second_path_starts_at_the_last_removed_stride_however_they_are_named():
    sizes = [
        maps_of(backbone="mobilenet_v1", remove_stride_at=names, dual_path=True, width=0.25)
        for names in (("conv1", "conv_dw_6"), ("conv_dw_6", "conv1"))
    ]
    assert sizes[0] == sizes[1]


def test_two_paths_cost_no_weights_and_come_back_from_disk(tmp_path):
    leaves = {"model__width": 0.25, "model__remove_stride_at": ("conv1",), "model__taps": PAPER_TAPS}
    config = make_config("mobilenet_v1", 128, **leaves, model__dual_path=True)
    model, other = build.build(config).model, build.build(config).model
    single = feature_extractor(make_config("mobilenet_v1", 128, **leaves, model__levels=2).model)
    double = feature_extractor(
        make_config("mobilenet_v1", 128, **leaves, model__levels=2, model__dual_path=True).model
    )
    assert single.count_params() == double.count_params()
    image = random_batch(1, 128, batch=1)[0]
    model.save_weights(tmp_path / "a.weights.h5")
    other.load_weights(tmp_path / "a.weights.h5")
    assert np.array_equal(model(image)["class_logits"], other(image)["class_logits"])
    model.save(tmp_path / "a.keras")
    whole = keras.saving.load_model(tmp_path / "a.keras")
    assert np.array_equal(model(image)["class_logits"], whole(image)["class_logits"])
    assert len(whole.weights) == len(model.weights)


@pytest.mark.parametrize(
    ("leaves", "message"),
    [
        (
            {"remove_stride_at": ("conv_dw_3",)},
            r"'conv_dw_3' has no stride; layers with one: conv1, conv_dw_2, conv_dw_4, conv_dw_6, conv_dw_12$",
        ),
        ({"remove_stride_at": ("conv_1",)}, r"did you mean conv1\?"),
        (
            {"backbone": "resnet50", "remove_stride_at": ("conv3_block1_1_conv",)},
            r"a branch beside conv3_block1_1_conv keeps its stride; name its layer too",
        ),
        ({"dual_path": True}, r"model\.dual_path needs model\.remove_stride_at"),
        (
            {"remove_stride_at": ("conv_dw_12",), "dual_path": True, "taps": ("conv_pw_5_relu",)},
            r"model\.dual_path: the last tap does not lie behind 'conv_dw_12' alone",
        ),
    ],
)
def test_what_is_refused(leaves, message):
    backbone = leaves.get("backbone", "mobilenet_v1")
    more = {f"model__{key}": value for key, value in leaves.items() if key != "backbone"}
    settings = make_config(backbone, 128, **more).model
    with pytest.raises(ConfigError, match=message):
        feature_extractor(settings)
