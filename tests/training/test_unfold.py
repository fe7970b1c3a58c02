"""Folded batch norms get the statistics of their inputs, and the network computes what it did."""

import keras
import numpy as np

from ssd_tf.config import ModelConfig
from ssd_tf.models import detector, layers
from ssd_tf.training import unfold

IMAGES = np.random.default_rng(3).integers(0, 256, (6, 32, 32, 3)).astype("uint8")
NAMES = ("norm1", "norm2", "head_1_class_logits_depthwise_bn", "head_1_box_deltas_depthwise_bn")


def make_detector():
    """A detector with batch norms in its backbone and in its heads, all folded but one."""
    keras.utils.set_random_seed(4)
    image, body = keras.Input((32, 32, 3), dtype="uint8"), keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(6, 3, strides=2, name="conv1")(body)
    x = keras.layers.ReLU(6.0)(keras.layers.BatchNormalization(epsilon=1e-3, name="norm1")(x))
    x = keras.layers.DepthwiseConv2D(3, strides=2, name="conv2")(x)
    x = keras.layers.ReLU(6.0)(keras.layers.BatchNormalization(epsilon=1e-3, name="norm2")(x))
    backbone = keras.Model(body, x, name="backbone")
    features = backbone(layers.make_preprocess("tf")(image))
    model = detector.build_ssd(keras.Model(image, [features]), 2, (2,), ModelConfig(heads="lite"))
    rng = np.random.default_rng(8)
    for layer in detector.batch_norms(model):
        size = layer.gamma.shape[0]
        scale = rng.uniform(0.5, 2, size) if layer.name == "norm2" else np.ones(size)
        layer.set_weights([scale, rng.normal(size=size), np.zeros(size), np.full(size, np.float32(1 - 1e-3))])
    return model


def outputs(model, training=False):
    return {name: np.asarray(value) for name, value in model(IMAGES, training=training).items()}


def test_function_stays_and_statistics_are_those_of_the_inputs():
    model = make_detector()
    before = outputs(model)
    norm = model.get_layer("backbone").get_layer("norm2")
    probe = keras.Model(model.get_layer("backbone").inputs, norm.input)
    inputs = np.asarray(probe(model.get_layer("preprocess")(IMAGES)), np.float64).reshape(-1, 6)
    assert unfold.unfold(model, IMAGES) == len(NAMES)
    for name, value in outputs(model).items():
        np.testing.assert_allclose(value, before[name], rtol=0, atol=1e-5 * np.abs(before[name]).max())
    np.testing.assert_allclose(norm.moving_mean, inputs.mean(axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(norm.moving_variance, inputs.var(axis=0), rtol=1e-4)
    assert unfold.find_folded(model) == []


def test_training_mode_on_the_same_images_computes_the_same():
    model = make_detector()
    before = outputs(model)
    folded = outputs(model, training=True)
    assert np.abs(folded["class_logits"] - before["class_logits"]).max() > 0.1  # what unfolding is for
    model = make_detector()
    unfold.unfold(model, IMAGES)
    for name, value in outputs(model, training=True).items():
        np.testing.assert_allclose(value, before[name], rtol=0, atol=1e-4 * np.abs(before[name]).max())


def test_batch_norms_that_are_not_folded_are_left_alone():
    model = make_detector()
    heads = [layer for layer in detector.batch_norms(model) if layer.name.startswith("head_")]
    heads[0].set_weights([np.ones(6), np.zeros(6), np.zeros(6), np.ones(6)])  # as initialised
    heads[1].moving_mean.assign(np.full(6, 0.5))
    kept = [layer.get_weights() for layer in heads]
    assert {layer.name for layer in unfold.find_folded(model)} == {"norm1", "norm2"}
    assert unfold.unfold(model, IMAGES) == 2
    for layer, weights in zip(heads, kept, strict=True):
        for value, old in zip(layer.get_weights(), weights, strict=True):
            np.testing.assert_array_equal(value, old)


def test_a_lone_batch_norm_of_any_epsilon_is_unfolded():
    model = make_detector()
    for layer in detector.batch_norms(model):
        layer.epsilon = 1e-5  # such as model.norm_epsilon sets
        if layer.name != "norm1":
            layer.moving_mean.assign(np.full(6, 0.5))
    before = outputs(model)
    assert unfold.unfold(model, IMAGES) == 1
    np.testing.assert_allclose(outputs(model)["class_logits"], before["class_logits"], rtol=0, atol=1e-4)


def test_a_channel_that_never_fires_keeps_its_value():
    model = make_detector()
    conv = model.get_layer("backbone").get_layer("conv1")
    kernel, bias = conv.get_weights()
    kernel[..., 2], bias[2] = 0, 0.25
    conv.set_weights([kernel, bias])
    before = outputs(model)
    unfold.unfold(model, IMAGES)
    after = outputs(model)
    assert np.asarray(model.get_layer("backbone").get_layer("norm1").moving_variance)[2] == 0
    np.testing.assert_allclose(after["class_logits"], before["class_logits"], rtol=0, atol=1e-4)


def test_first_images_go_on_to_the_next_batch():
    batches = [(IMAGES[:2], None, None), (IMAGES[2:4], None, None), (IMAGES[4:], None, None)]
    np.testing.assert_array_equal(unfold.first_images(batches, 3), IMAGES[:3])
