"""Weights of one detector in another: what fits is copied, class columns go by name."""

import keras
import numpy as np
import pytest

from ssd_tf.config import ModelConfig
from ssd_tf.models import detector
from ssd_tf.training.transfer import Columns, transfer_weights

IMAGES = np.random.default_rng(5).integers(0, 256, (2, 16, 16, 3)).astype("float32")


def make_detector(names, background=1, has_background=True, counts=(2, 3), width=4, heads="conv"):
    """A detector of two small maps with random weights, and its Columns."""
    image = keras.Input((16, 16, 3))
    body = keras.Input((16, 16, 3))
    fine = keras.layers.Conv2D(width, 3, strides=4, padding="same", name="fine")(body)
    coarse = keras.layers.Conv2D(4, 3, strides=2, padding="same", name="coarse")(fine)
    maps = keras.Model(body, [fine, coarse], name="backbone")(image)
    settings = ModelConfig(heads=heads, background_columns=background, neck_channels=4)
    model = detector.build_ssd(keras.Model(image, maps), len(names), counts, settings, has_background)
    return model, Columns(tuple(names), background if has_background else 0)


def logits(model):
    return np.asarray(model(IMAGES)["class_logits"])


@pytest.mark.parametrize("heads", ["conv", "lite", "shared"])
def test_known_classes_keep_their_logits_and_boxes_wherever_their_columns_stand(heads):
    source, before = make_detector(("cat", "dog", "cow"), heads=heads)
    target, after = make_detector(("cow", "owl", "cat", "ant"), heads=heads)
    anew = logits(target)
    result = transfer_weights(source, target, before, after)
    old, new = logits(source), logits(target)
    np.testing.assert_allclose(new[..., [0, 1, 3]], old[..., [0, 3, 1]], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(target(IMAGES)["box_deltas"], source(IMAGES)["box_deltas"])
    assert (result.kept, result.anew) == (["cow", "cat"], ["owl", "ant"])
    assert not np.allclose(new[..., 1], anew[..., 1]) and not np.allclose(new[..., 2], old[..., 2])
    assert result.not_loaded == [] and result.unused == []
    tensors = 1 if heads == "shared" else 2
    assert len(result.partly) == 2 * tensors
    assert len(result.loaded) + len(result.partly) == len(target.weights)


def test_new_columns_stay_as_they_were_initialised():
    source, before = make_detector(("cat",))
    target, after = make_detector(("owl", "cat"))
    kernel = np.asarray(target.get_layer("head_1_class_logits").kernel)
    transfer_weights(source, target, before, after)
    loaded = np.asarray(target.get_layer("head_1_class_logits").kernel)
    np.testing.assert_array_equal(loaded[..., 1::3], kernel[..., 1::3])
    np.testing.assert_array_equal(
        loaded[..., 2::3], np.asarray(source.get_layer("head_1_class_logits").kernel)[..., 1::2]
    )


def test_of_several_background_columns_the_first_is_taken():
    source, before = make_detector(("cat", "dog"), background=3)
    target, after = make_detector(("dog",))
    transfer_weights(source, target, before, after)
    kernel = np.asarray(source.get_layer("head_2_class_logits").kernel)
    np.testing.assert_array_equal(target.get_layer("head_2_class_logits").kernel[..., 0::2], kernel[..., 0::5])
    np.testing.assert_array_equal(target.get_layer("head_2_class_logits").kernel[..., 1::2], kernel[..., 4::5])


def test_sigmoid_heads_have_no_background_to_give():
    source, before = make_detector(("cat", "dog"), has_background=False)
    target, after = make_detector(("dog",))
    anew = np.asarray(target.get_layer("head_1_class_logits").bias)
    source.get_layer("head_1_class_logits").bias.assign(np.arange(4.0) + 1)
    transfer_weights(source, target, before, after)
    np.testing.assert_array_equal(target.get_layer("head_1_class_logits").bias, [anew[0], 2, anew[2], 4])


def test_a_batch_norm_is_taken_with_its_convolution_alone():
    def make(width):
        body = keras.Input((16, 16, 3))
        x = keras.layers.Conv2D(6, width, name="conv")(body)
        x = keras.layers.BatchNormalization(name="norm")(x)
        x = keras.layers.DepthwiseConv2D(3, name="depthwise")(x)
        return keras.Model(body, keras.layers.BatchNormalization(name="depthwise_norm")(x))

    result = transfer_weights(make(3), make(5), Columns((), 1), Columns((), 1))
    assert result.loaded == [
        *("depthwise/kernel", "depthwise/bias", "depthwise_norm/gamma", "depthwise_norm/beta"),
        *("depthwise_norm/moving_mean", "depthwise_norm/moving_variance"),
    ]
    assert ["norm/gamma", "belongs to weights that were not loaded"] in result.not_loaded


def test_classes_count_as_kept_on_the_levels_whose_heads_fit():
    source, before = make_detector(("cat",), counts=(2, 4))
    target, after = make_detector(("cat", "owl"), counts=(2, 3))
    result = transfer_weights(source, target, before, after)
    assert (result.heads, result.kept, result.anew) == ([1, 2], ["cat"], ["owl"])


def test_what_has_another_shape_or_is_not_there_is_named_on_both_sides():
    source, before = make_detector(("cat",), counts=(2, 4), width=5)
    target, after = make_detector(("cat",), counts=(2, 3))
    result = transfer_weights(source, target, before, after)
    assert ["backbone/fine/kernel", "[3, 3, 3, 5] in the run, [3, 3, 3, 4] here"] in result.not_loaded
    assert ["head_2_class_logits/bias", "[8] in the run, [6] here"] in result.not_loaded
    assert ["head_1_box_deltas/kernel", "[3, 3, 5, 8] in the run, [3, 3, 4, 8] here"] in result.not_loaded
    assert ["head_1_box_deltas/bias", "belongs to weights that were not loaded"] in result.not_loaded
    assert (result.loaded, result.partly, result.heads) == ([], [], [0, 2])
    assert (result.kept, result.anew) == ([], ["cat"])
    lite, _ = make_detector(("cat",), heads="lite")
    result = transfer_weights(source, lite, before, after)
    assert ["head_1_box_deltas_depthwise/kernel", "not in the run"] in result.not_loaded
    result = transfer_weights(lite, source, before, after)
    assert "head_1_box_deltas_depthwise/kernel" in result.unused
