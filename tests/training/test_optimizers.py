"""Learning rates, their groups, weight decay, clipping and accumulated gradients, by hand and against Keras."""

import json

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


def test_cosine_ends_at_its_final_rate():
    found = rates([10, 55, 100, 120], warmup=0.1, schedule="cosine", final_rate=0.1)
    np.testing.assert_allclose(found, [0.6, 0.06 + 0.27, 0.06, 0.06], rtol=1e-5)


def test_exponential_falls_by_the_same_factor_in_every_tenth():
    found = rates([0, 20, 30, 60, 100], warmup=0.2, schedule="exponential", final_rate=0.01)
    expected = [0.2, 0.6, 0.6 * 0.01**0.125, 0.06, 0.006]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(("power", "middle"), [(1.0, 0.5), (2.0, 0.25), (0.5, 0.5**0.5)])
def test_polynomial_of_its_power(power, middle):
    settings = {"schedule": "polynomial", "power": power, "warmup": 0.2}
    found = rates([0, 20, 60, 100, 110], **settings)
    np.testing.assert_allclose(found, [0.2, 0.6, 0.6 * middle, 0.0, 0.0], rtol=1e-5, atol=1e-8)
    found = rates([20, 60, 100, 110], **settings, final_rate=0.5)
    np.testing.assert_allclose(found, [0.6, 0.3 + 0.3 * middle, 0.3, 0.3], rtol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"schedule": "multistep", "milestones": (0.5, 0.8)},
        {"schedule": "cosine", "final_rate": 0.2},
        {"schedule": "exponential", "final_rate": 0.02},
        {"schedule": "polynomial", "power": 3.0},
        {"schedule": "constant"},
    ],
    ids=lambda settings: settings["schedule"],
)
def test_shape_does_not_depend_on_the_number_of_steps(settings):
    settings = {"warmup": 0.2, **settings}
    short = rates(range(0, 100, 5), **settings)
    long = rates(range(0, 1000, 50), steps=1000, **settings)
    np.testing.assert_allclose(short, long, rtol=1e-5)
    assert len(set(short)) > 4  # the warm-up alone has four


@pytest.mark.parametrize("schedule", ["cosine", "multistep", "constant", "polynomial", "exponential"])
def test_schedule_survives_serialisation(schedule):
    settings = TrainConfig(steps=50, warmup=0.1, schedule=schedule, final_rate=0.3, power=2.0)
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


def fit(model, **settings):
    """The optimizer of a model, of constant rate and without clipping unless told otherwise."""
    settings = {"steps": 100, "warmup": 0.0, "schedule": "constant", "clip_norm": 0.0, **settings}
    settings = TrainConfig(**settings)
    optimizer = optimizers.make_optimizer(settings)
    optimizers.fit_to(optimizer, model, settings)
    return optimizer


class NoLoss(keras.losses.Loss):
    """Always 0: only the weight decay moves weights."""

    def call(self, y_true, y_pred):
        return keras.ops.sum(y_pred, axis=(1, 2, 3)) * 0.0


def step_without_loss(model, settings, steps):
    optimizer = optimizers.make_optimizer(settings)
    optimizers.fit_to(optimizer, model, settings)
    model.compile(optimizer, loss=NoLoss())
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
    fit(model, weight_decay=0.0)
    assert model.losses == []


def test_decay_leaves_frozen_layers_alone():
    model = small_model()
    model.get_layer("conv").trainable = False
    fit(model, weight_decay=0.1)
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


GROUP_RATES = {"backbone_rate": 0.5, "neck_rate": 2.0, "extras_rate": 0.25, "heads_rate": 4.0}
FACTORS = {"stem": 0.5, "stem_norm": 0.5, "neck_1": 2.0, "extra_1": 0.25, "head_1": 4.0}


def grouped_model():
    """Layers of all four groups, the backbone's in a model of their own, as detectors have them."""
    image = keras.Input((6,))
    x = keras.layers.Dense(5, name="stem")(image)
    x = keras.layers.BatchNormalization(name="stem_norm")(x)
    body = keras.Model(image, x, name="backbone")
    image = keras.Input((6,))
    x = keras.layers.Dense(4, name="neck_1")(body(image))
    x = keras.layers.Dense(3, name="extra_1")(x)
    return keras.Model(image, keras.layers.Dense(2, name="head_1")(x))


def factor_of(weight):
    return FACTORS[weight.path.split("/")[-2]]


def take_steps(model, optimizer, count, start="zeros"):
    """Applies gradients that depend on the step alone; returns the weights after each step."""
    found = []
    for weight in model.trainable_variables:
        weight.assign(np.full(weight.shape, 0.0 if start == "zeros" else 2.0))
    for step in range(count):
        rng = np.random.default_rng(step)
        gradients = [
            keras.ops.convert_to_tensor(rng.normal(size=w.shape), "float32") for w in model.trainable_variables
        ]
        optimizer.apply(gradients, model.trainable_variables)
        found.append([weight.numpy() for weight in model.trainable_variables])
    return found


OPTIMIZERS = ["sgd", "adam", "adamw", "rmsprop"]


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_groups_move_by_their_factor(kind, clip_norm):
    """Powers of two and weights that start at 0: no rounding, whatever the optimizer remembers."""
    settings = {"optimizer": kind, "learning_rate": 0.125, "weight_decay": 0.0, "clip_norm": clip_norm}
    models = grouped_model(), grouped_model()
    plain = take_steps(models[0], fit(models[0], **settings), 4)
    scaled = take_steps(models[1], fit(models[1], **settings, **GROUP_RATES), 4)
    moved = 0
    for before, after in zip(plain, scaled, strict=True):
        for weight, first, second in zip(models[1].trainable_variables, before, after, strict=True):
            assert np.array_equal(first * factor_of(weight), second), weight.path
            moved += np.count_nonzero(second)
    assert moved == 4 * sum(np.prod(weight.shape) for weight in models[1].trainable_variables)


def test_the_layer_outside_decides_the_group():
    """Of layers inside a layer of the neck, which could be called anything."""

    @keras.saving.register_keras_serializable("test_optimizers")
    class Block(keras.layers.Layer):
        def __init__(self, **options):
            super().__init__(**options)
            self.inner = keras.layers.Dense(2, name="head_like")

        def call(self, x):
            return self.inner(x)

    image = keras.Input((3,))
    model = keras.Model(image, Block(name="neck_block")(image))
    assert fit(model, **GROUP_RATES).rates == [2.0, 2.0]


def test_frozen_layers_have_no_rate():
    model = grouped_model()
    model.get_layer("neck_1").trainable = False
    optimizer = fit(model, **GROUP_RATES)
    assert list(optimizer.rates) == [factor_of(weight) for weight in model.trainable_variables]
    assert 2.0 not in optimizer.rates and len(optimizer.rates) == 8


def keras_twin(kind, rate):
    """Keras' own optimizer of the same numbers."""
    if kind == "sgd":
        return keras.optimizers.SGD(rate, momentum=0.9)
    if kind == "rmsprop":
        return keras.optimizers.RMSprop(rate, rho=0.8, momentum=0.9, epsilon=0.01)
    betas = {"beta_1": 0.9, "beta_2": 0.8, "epsilon": 0.01}
    if kind == "adam":
        return keras.optimizers.Adam(rate, **betas)
    twin = keras.optimizers.AdamW(rate, weight_decay=0.3, **betas)
    twin.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return twin


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_without_groups_it_is_keras_own(kind):
    own = {} if kind == "sgd" else {"square_momentum": 0.8, "epsilon": 0.01}
    decay = 0.3 if kind == "adamw" else 0.0
    models = grouped_model(), grouped_model()
    ours = fit(models[0], optimizer=kind, learning_rate=0.1, weight_decay=decay, **own)
    first = take_steps(models[0], ours, 5, start="twos")
    second = take_steps(models[1], keras_twin(kind, 0.1), 5, start="twos")
    for before, after in zip(first, second, strict=True):
        for weight, one, other in zip(models[0].trainable_variables, before, after, strict=True):
            np.testing.assert_array_equal(one, other, err_msg=weight.path)


@pytest.mark.parametrize(("kind", "square"), [("adam", 0.999), ("adamw", 0.999), ("rmsprop", 0.9)])
def test_square_momentum_of_0_is_keras_own(kind, square):
    optimizer = fit(grouped_model(), optimizer=kind)
    assert (optimizer.rho if kind == "rmsprop" else optimizer.beta_2) == square
    assert optimizer.epsilon == 1e-7


def test_decoupled_decay_has_the_rate_of_its_group():
    """Without gradients a step takes rate * factor * decay of each kernel; biases and norms stay."""
    model = grouped_model()
    optimizer = fit(model, optimizer="adamw", learning_rate=0.5, weight_decay=0.125, **GROUP_RATES)
    assert model.losses == []  # none of it in the loss
    for weight in model.trainable_variables:
        weight.assign(np.full(weight.shape, 2.0))
    optimizer.apply([keras.ops.zeros(w.shape) for w in model.trainable_variables], model.trainable_variables)
    for weight in model.trainable_variables:
        left = 1 - 0.5 * 0.125 * factor_of(weight) if weight.name == "kernel" else 1.0
        assert np.array_equal(weight.numpy(), np.full(weight.shape, 2.0 * left)), weight.path


@pytest.mark.parametrize("kind", ["sgd", "adam", "rmsprop"])
def test_all_others_have_the_decay_in_the_loss(kind):
    model = grouped_model()
    optimizer = fit(model, optimizer=kind, weight_decay=0.5)
    assert (optimizer.rates, optimizer.decays) == (None, None)
    kernels = [weight.numpy() for weight in model.trainable_variables if weight.name == "kernel"]
    total = float(sum(keras.ops.sum(loss) for loss in model.losses))
    np.testing.assert_allclose(total, 0.25 * sum((kernel**2).sum() for kernel in kernels), rtol=1e-5)


def plain_model():
    """Without batch norms, whose statistics would depend on the batch; the same weights at every call."""
    image = keras.Input((6,))
    x = keras.layers.Dense(5, activation="tanh", name="stem")(image)
    model = keras.Model(image, keras.layers.Dense(2, name="head_1")(x))
    rng = np.random.default_rng(7)
    model.set_weights([rng.normal(size=weight.shape) for weight in model.weights])
    return model


def compiled(eager=True, **settings):
    model = plain_model()
    model.compile(fit(model, **settings), loss="mean_squared_error", run_eagerly=eager)
    return model


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_accumulated_quarters_are_the_whole_batch(kind):
    """Decay in the loss and clipping included: what is clipped is the mean of the gradients."""
    settings = {"optimizer": kind, "learning_rate": 0.1, "weight_decay": 0.05, "clip_norm": 0.5, "heads_rate": 3.0}
    whole, quarters = compiled(**settings), compiled(**settings, accumulate=4)
    rng = np.random.default_rng(1)
    for step in range(3):
        images, targets = rng.normal(size=(16, 6)), rng.normal(size=(16, 2))
        whole.train_on_batch(images, targets)
        before = [weight.numpy() for weight in quarters.weights]
        for part in range(4):
            assert all(np.array_equal(w.numpy(), b) for w, b in zip(quarters.weights, before, strict=True)), part
            rows = slice(4 * part, 4 * part + 4)
            quarters.train_on_batch(images[rows], targets[rows])
        for one, other in zip(whole.weights, quarters.weights, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-6, err_msg=f"{step} {one.path}")
    assert int(whole.optimizer.iterations) == int(quarters.optimizer.iterations) == 3


def test_an_update_takes_the_learning_rate_of_its_last_batch():
    settings = {"schedule": "polynomial", "steps": 8, "learning_rate": 0.8, "accumulate": 4, "momentum": 0.0}
    optimizer = fit(grouped_model(), **settings)
    weight = keras.Variable([0.0])
    positions = []
    for _ in range(8):
        optimizer.apply([keras.ops.convert_to_tensor([1.0])], [weight])
        positions.append(float(weight.numpy()[0]))
    # The rates of the steps 3 and 7 of 8: 0.8 * (1 - 3 / 8) and 0.8 * (1 - 7 / 8).
    np.testing.assert_allclose(positions, [0, 0, 0, -0.5, -0.5, -0.5, -0.5, -0.6], rtol=1e-6)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_optimizer_survives_serialisation(kind):
    settings = {"optimizer": kind, "ema": 0.99, "accumulate": 2, "weight_decay": 0.1, "learning_rate": 0.1}
    settings |= {"schedule": "cosine", "clip_norm": 2.0, **GROUP_RATES}
    models = grouped_model(), grouped_model()
    first = fit(models[0], **settings)
    text = json.dumps(keras.optimizers.serialize(first))  # no tensors in it
    again = keras.optimizers.deserialize(json.loads(text))
    assert type(again) is type(first)
    assert keras.optimizers.serialize(again) == json.loads(text)
    assert json.loads(text)["config"]["ema_momentum"] == 0.99
    for one, other in zip(take_steps(models[0], first, 4), take_steps(models[1], again, 4), strict=True):
        assert all(np.array_equal(before, after) for before, after in zip(one, other, strict=True))
    for one, other in zip(first.variables, again.variables, strict=True):
        assert np.array_equal(one.numpy(), other.numpy()), one.path


def test_a_saved_model_goes_on_where_it_was(tmp_path):
    settings = {"optimizer": "adamw", "ema": 0.9, "accumulate": 2, "weight_decay": 0.1, "heads_rate": 4.0}
    model = compiled(eager=False, **settings)
    batches = [np.random.default_rng(step).normal(size=(4, 8)) for step in range(6)]
    for batch in batches[:3]:  # in the middle of an update
        model.train_on_batch(batch[:, :6], batch[:, 6:])
    model.save(tmp_path / "x.keras")
    again = keras.models.load_model(tmp_path / "x.keras")
    for one in (model, again):
        for batch in batches[3:]:
            one.train_on_batch(batch[:, :6], batch[:, 6:])
    variables = zip(
        model.weights + model.optimizer.variables, again.weights + again.optimizer.variables, strict=True
    )
    for one, other in variables:
        np.testing.assert_array_equal(one, other, err_msg=one.path)
    assert int(again.optimizer.iterations) == 3
