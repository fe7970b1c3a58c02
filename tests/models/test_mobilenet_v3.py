"""MobileNet V3 Large is Keras' own, and with its options torchvision's."""

import keras
import numpy as np
import pytest
from backbone_cases import make_config

from ssd_tf import config as configs
from ssd_tf.api import build
from ssd_tf.errors import ConfigError, DataError
from ssd_tf.models import registry
from ssd_tf.models.extractor import feature_extractor
from ssd_tf.models.mobilenet_v3 import mobilenet_v3_large

TAPS = ("expanded_conv_6_expand_activation", "expanded_conv_12_expand_activation", "conv_1_activation")
# What Keras' activations of these maps follow: it counts their own names up.
BEFORE = ("expanded_conv_6_expand_bn", "expanded_conv_12_expand_bn", "conv_1_bn")


def make_twin(side=224, **options):
    """Keras' own network, with weights and statistics at which its maps neither die nor grow."""
    keras.utils.set_random_seed(0)
    options = {"include_top": False, "include_preprocessing": False, **options}
    shape = None if options["include_top"] else (side, side, 3)
    twin = keras.applications.MobileNetV3Large(weights=None, input_shape=shape, **options)
    generator = np.random.default_rng(0)
    for layer in twin.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([generator.uniform(0.5, 1.5, weight.shape) for weight in layer.get_weights()])
        elif layer.weights and layer.use_bias:
            kernel, bias = layer.get_weights()
            layer.set_weights([kernel, generator.uniform(-1, 1, bias.shape)])
    return twin


def save(model, folder):
    path = folder / "twin.weights.h5"
    model.save_weights(path)
    return str(path)


def run(model, outputs, images):
    return [np.asarray(x) for x in keras.Model(model.inputs[0], outputs)(images)]


@pytest.mark.parametrize(("height", "width"), [(224, 224), (75, 107), (160, 97)])
def test_maps_are_keras_own(height, width, tmp_path):
    """At even and odd sizes: "same" is Keras' padding at both."""
    twin = make_twin()
    ours = mobilenet_v3_large((height, width, 3), save(twin, tmp_path))
    theirs = keras.applications.MobileNetV3Large(
        include_top=False, weights=None, input_shape=(height, width, 3), include_preprocessing=False
    )
    theirs.set_weights(twin.get_weights())
    activations = [layer for layer in theirs.layers if isinstance(layer, keras.layers.Activation)]
    after = {layer.input._keras_history.operation.name: layer for layer in activations}
    image = np.random.default_rng(1).uniform(-1, 1, (2, height, width, 3)).astype(np.float32)
    found = run(ours, [ours.get_layer(name).output for name in TAPS], image)
    expected = run(theirs, [after[name].output for name in BEFORE], image)
    for one, other in zip(found, expected, strict=True):
        assert np.std(other) > 0.01
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4 * np.max(np.abs(other)))


@pytest.mark.parametrize(
    "options", [{"include_preprocessing": True}, {"include_top": True, "classes": 7}, {"include_top": True}]
)
def test_files_with_classifier_or_preprocessing_fit_too(options, tmp_path):
    twin = make_twin(**options)
    ours = mobilenet_v3_large((64, 64, 3), save(twin, tmp_path))
    compared = 0
    for layer in ours.layers:
        for one, other in zip(
            layer.get_weights(), twin.get_layer(layer.name).get_weights() if layer.weights else ()
        ):
            assert np.array_equal(one, other)
            compared += one.size
    assert compared == ours.count_params() == 2_996_352


def test_preprocessing_is_keras_rescaling(tmp_path):
    """Keras' network takes pixels 0..255 with its own layer; ours gets them through a recipe's."""
    twin = make_twin(128, include_preprocessing=True)
    settings = make_config("mobilenet_v3_large", model__levels=3)
    settings = configs.replace(settings, model__weights=save(twin, tmp_path)).model
    images = np.random.default_rng(0).integers(0, 256, (1, 128, 128, 3), np.uint8)
    expected = np.asarray(twin(images.astype(np.float32)))
    np.testing.assert_allclose(
        feature_extractor(settings)(images)[-1], expected, rtol=0, atol=1e-5 * np.max(np.abs(expected))
    )


def test_every_layer_with_weights_has_keras_name():
    for width in (0.75, 1.0):
        ours = mobilenet_v3_large((64, 64, 3), None, width=width)
        theirs = keras.applications.MobileNetV3Large(
            include_top=False, weights=None, input_shape=(64, 64, 3), alpha=width
        )
        shapes = [{weight.path: tuple(weight.shape) for weight in model.weights} for model in (ours, theirs)]
        assert shapes[0] == shapes[1]
        assert {layer.epsilon for layer in ours.layers if isinstance(layer, keras.layers.BatchNormalization)} == {
            1e-3
        }


def test_names_do_not_depend_on_what_was_built_before():
    first, second = (mobilenet_v3_large((64, 64, 3), None) for _ in range(2))
    names = [[layer.name for layer in model.layers[1:]] for model in (first, second)]
    assert names[0] == names[1]
    assert registry.get_backbone("mobilenet_v3_large").layouts["default"].taps == TAPS


def test_activations_by_hand():
    """x relu6(x + 3) / 6, and the gate relu6(x + 3) / 6."""
    model = mobilenet_v3_large((64, 64, 3), None)
    x = np.float32([-4, -3, -1, 0, 1, 3, 4])
    gate = np.float32([0, 0, 2 / 6, 3 / 6, 4 / 6, 1, 1])
    for name, expected in (
        ("conv_activation", x * gate),
        ("expanded_conv_expand_activation", None),
        ("expanded_conv_5_depthwise_activation", np.maximum(x, 0)),
        ("expanded_conv_6_expand_activation", x * gate),
        ("expanded_conv_3_squeeze_excite_gate", gate),
    ):
        if expected is None:  # the first block does not expand
            assert name not in [layer.name for layer in model.layers]
        else:
            np.testing.assert_allclose(model.get_layer(name)(x), expected, atol=1e-6)


def test_squeeze_is_a_quarter_in_steps_of_eight():
    model = mobilenet_v3_large((64, 64, 3), None)
    squeezed = {
        block: model.get_layer(f"expanded_conv_{block}_squeeze_excite_conv").filters
        for block in (3, 4, 5, 10, 11, 12, 13, 14)
    }
    assert squeezed == {3: 24, 4: 32, 5: 32, 10: 120, 11: 168, 12: 168, 13: 240, 14: 240}
    names = [layer.name for layer in model.layers]
    assert sum(name.endswith("squeeze_excite_conv") for name in names) == 8


def torchvision_config():
    """torchvision's ssdlite320_mobilenet_v3_large."""
    chain = "[[256,512,3,2,1],[128,256,3,2,1],[128,256,3,2,1],[64,128,3,2,1]]"
    model = {
        "backbone": "mobilenet_v3_large",
        "image_size": 320,
        "padding": "symmetric",
        "reduced_tail": "true",
        "taps": f"{TAPS[1]},{TAPS[2]}",
        "extras": "separable",
        "extras_chain": chain,
        "heads": "lite",
        "num_classes": 90,
        "weights": "none",
    }
    overrides = [f"model.{key}={value}" for key, value in model.items()]
    overrides.append("anchors.sizes=0.2,0.35,0.5,0.65,0.8,0.95,1.0")
    return configs.load_config(None, [*overrides, f"anchors.ratios={[[2, 3]] * 6}"])


def test_reduced_tail_is_torchvisions():
    detector = build.build(torchvision_config())
    assert detector.map_sizes == tuple((cells, cells) for cells in (20, 10, 5, 3, 2, 1))
    assert len(detector.anchors) == 3234
    fine, coarse = detector.model.get_layer("backbone").outputs
    assert (fine.shape[1:], coarse.shape[1:]) == ((20, 20, 672), (10, 10, 480))
    # Kernels, biases, and the batch norms' scales and shifts: what they measure is not counted in torch.
    assert sum(weight.value.numpy().size for weight in detector.model.trainable_weights) == 3_440_060


def test_reduced_tail_halves_the_last_stage():
    whole, reduced = (mobilenet_v3_large((64, 64, 3), None, reduced_tail=tail) for tail in (False, True))

    def filters(model, part):
        return [model.get_layer(f"expanded_conv_{block}_{part}").filters for block in (11, 12, 13, 14)]

    assert (filters(whole, "expand"), filters(reduced, "expand")) == ([672, 672, 960, 960], [672, 672, 480, 480])
    assert (filters(whole, "project"), filters(reduced, "project")) == ([112, 160, 160, 160], [112, 80, 80, 80])
    squeezed = [reduced.get_layer(f"expanded_conv_{block}_squeeze_excite_conv").filters for block in (12, 13, 14)]
    assert squeezed == [168, 120, 120]
    assert (whole.output.shape[-1], reduced.output.shape[-1]) == (960, 480)


def test_weights_for_a_reduced_tail_are_refused(tmp_path):
    config = configs.replace(
        make_config("mobilenet_v3_large", model__reduced_tail=True), model__weights="imagenet"
    )
    with pytest.raises(ConfigError) as error:
        build.check(config)  # before any data are read
    assert str(error.value) == (
        "model.weights: there are no ImageNet weights for mobilenet_v3_large with model.reduced_tail to fetch: "
        "set model.weights=none"
    )
    config = configs.replace(config, model__weights=save(make_twin(), tmp_path))
    first = "expanded_conv_12_project/kernel is 1x1x672x160 in the file, expected 1x1x672x80"
    with pytest.raises(DataError, match=f"^weights do not fit mobilenet_v3_large: {first}; .*twin"):
        feature_extractor(config.model)


def test_reduced_tail_reads_its_own_weights(tmp_path):
    first = mobilenet_v3_large((64, 64, 3), None, reduced_tail=True)
    second = mobilenet_v3_large((96, 64, 3), save(first, tmp_path), reduced_tail=True)
    for one, other in zip(first.get_weights(), second.get_weights(), strict=True):
        assert np.array_equal(one, other)
    assert second.output.shape[1:] == (3, 2, 480)


def test_weights_of_another_network_do_not_fit(tmp_path):
    small = keras.applications.MobileNetV3Small(include_top=False, weights=None, input_shape=(64, 64, 3))
    config = configs.replace(make_config("mobilenet_v3_large"), model__weights=save(small, tmp_path))
    first = "expanded_conv_project/kernel is 1x1x16x8 in the file, expected 1x1x16x16"
    with pytest.raises(DataError, match=f"(?i)^weights do not fit mobilenet_?v3_?large: {first}; .*twin"):
        feature_extractor(config.model)
