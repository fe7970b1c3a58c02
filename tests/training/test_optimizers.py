"""Learning rates, weight decay and clipping, by hand."""

import keras
import numpy as np
import pytest

from ssd_tf.config import TrainConfig
from ssd_tf.models.layers import L2Normalize
from ssd_tf.training import optimizers


def rates(at, **settings):
    schedule = optimizers.make_schedule(TrainConfig(**{"steps": 100, "learning_rate": 0.6, **settings}))
    return [float(schedule(step)) for step in at]


def test_warmup_is_linear_from_a_third():
    found = rates([0, 5, 10, 11, 99], warmup=0.1, schedule="constant")
    np.testing.assert_allclose(found, [0.2, 0.4, 0.6, 0.6, 0.6], rtol=1e-6)


def test_no_warmup():
    np.testing.assert_allclose(rates([0, 1, 50], warmup=0.0, schedule="constant"), [0.6] * 3, rtol=1e-6)


def test_cosine_falls_to_zero_after_the_warmup():
    found = rates([0, 10, 25, 55, 85, 100, 120], warmup=0.1, schedule="cosine")
    expected = [0.2, 0.6, 0.3 * (1 + np.cos(np.pi / 6)), 0.3, 0.3 * (1 - np.cos(np.pi / 6)), 0.0, 0.0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)


def test_multistep_drops_tenfold_at_its_milestones():
    found = rates([0, 10, 50, 51, 75, 76, 100], warmup=0.1, schedule="multistep", milestones=(0.5, 0.75))
    np.testing.assert_allclose(found, [0.2, 0.6, 0.6, 0.06, 0.06, 0.006, 0.006], rtol=1e-5)


def test_shape_does_not_depend_on_the_number_of_steps():
    settings = {"warmup": 0.2, "schedule": "multistep", "milestones": (0.5, 0.8)}
    short = rates(range(0, 100, 5), **settings)
    long = rates(range(0, 1000, 50), steps=1000, **settings)
    np.testing.assert_allclose(short, long, rtol=1e-6)


@pytest.mark.parametrize("schedule", ["cosine", "multistep", "constant"])
def test_schedule_survives_serialisation(schedule):
    settings = TrainConfig(steps=50, warmup=0.1, schedule=schedule)
    first = optimizers.make_schedule(settings)
    again = keras.optimizers.schedules.deserialize(keras.optimizers.schedules.serialize(first))
    assert [float(again(step)) for step in (0, 3, 20, 45)] == [float(first(step)) for step in (0, 3, 20, 45)]


def small_model():
    """A kernel of each kind, biases, a batch norm and an L2 scale."""
    image = keras.Input((6, 6, 2))
    x = keras.layers.Conv2D(3, 3, name="conv", bias_initializer="ones")(image)
    x = keras.layers.DepthwiseConv2D(3, name="depthwise", bias_initializer="ones")(x)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = L2Normalize(name="scale")(x)
    outputs = keras.layers.Dense(2, name="dense", bias_initializer="ones")(x)
    return keras.Model(image, outputs)


class NoLoss(keras.losses.Loss):
    """Always 0: only the weight decay moves weights."""

    def call(self, y_true, y_pred):
        return keras.ops.sum(y_pred, axis=(1, 2, 3)) * 0.0


def step_without_loss(model, settings, steps):
    optimizers.add_weight_decay(model, settings.weight_decay)
    model.compile(optimizers.make_optimizer(settings), loss=NoLoss())
    batch = np.ones((2, 6, 6, 2), np.float32), np.zeros((2, 2, 2, 2), np.float32)
    return [float(model.train_on_batch(*batch)) for _ in range(steps)]


def test_one_step_of_weight_decay():
    settings = TrainConfig(
        steps=10, warmup=0.0, schedule="constant", learning_rate=0.5, weight_decay=0.01, clip_norm=0.0
    )
    model = small_model()
    before = {weight.path: weight.value.numpy() for weight in model.weights}
    decayed = [path for path in before if path.endswith("kernel")]
    assert len(decayed) == 3
    losses = step_without_loss(model, settings, 2)
    # caffe's: half the decay times the sum of squares
    np.testing.assert_allclose(losses[0], 0.005 * sum((before[path] ** 2).sum() for path in decayed), rtol=1e-5)
    # The first step takes lr * decay * w, the second .9 of that step and lr * decay of what is left.
    first = 1 - 0.5 * 0.01
    second = first - 0.9 * 0.5 * 0.01 - 0.5 * 0.01 * first
    for weight in model.trainable_weights:
        factor = second if weight.path in decayed else 1.0
        np.testing.assert_allclose(weight.value, before[weight.path] * factor, rtol=1e-6, err_msg=weight.path)


def test_one_step_alone_is_exact():
    settings = TrainConfig(
        steps=10, warmup=0.0, schedule="constant", learning_rate=0.25, weight_decay=0.5, clip_norm=0.0
    )
    model = small_model()
    before = model.get_layer("conv").kernel.value.numpy()
    step_without_loss(model, settings, 1)
    # Powers of two: no rounding but that of 1 - 1/8.
    np.testing.assert_allclose(model.get_layer("conv").kernel, before * 0.875, rtol=2e-7)


def test_no_decay_adds_no_loss():
    model = small_model()
    optimizers.add_weight_decay(model, 0.0)
    assert model.losses == []


def test_decay_leaves_frozen_layers_alone():
    model = small_model()
    model.get_layer("conv").trainable = False
    optimizers.add_weight_decay(model, 0.1)
    kernels = [model.get_layer(name).kernel.value.numpy() for name in ("depthwise", "dense")]
    total = float(sum(keras.ops.sum(loss) for loss in model.losses))
    np.testing.assert_allclose(total, 0.05 * sum((kernel**2).sum() for kernel in kernels), rtol=1e-5)


@pytest.mark.parametrize(("clip_norm", "expected"), [(1.0, (0.6, 0.8)), (10.0, (3.0, 4.0)), (0.0, (3.0, 4.0))])
def test_gradients_are_clipped_by_their_common_norm(clip_norm, expected):
    settings = TrainConfig(steps=10, warmup=0.0, schedule="constant", learning_rate=1.0, clip_norm=clip_norm)
    optimizer = optimizers.make_optimizer(settings)
    first, second = keras.Variable([0.0]), keras.Variable([0.0])
    gradients = [keras.ops.convert_to_tensor([3.0]), keras.ops.convert_to_tensor([4.0])]
    optimizer.apply(gradients, [first, second])
    np.testing.assert_allclose([-first.value[0], -second.value[0]], expected, rtol=1e-6)
