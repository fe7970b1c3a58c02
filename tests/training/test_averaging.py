"""The moving average of the weights: by hand, swapped in and out, scored beside the weights that learn."""

import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from ssd_tf import config as configs
from ssd_tf import runs
from ssd_tf.api import reports
from ssd_tf.training import averaging, optimizers


def settings_of(**settings):
    return configs.TrainConfig(**{"steps": 100, "warmup": 0.0, "learning_rate": 0.1, "ema": 0.9, **settings})


def small_model(policy="float32", **settings):
    """A compiled model with a batch norm, whose last layer is float32 as a detector's heads are."""
    settings = settings_of(**settings)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    image = keras.Input((5,))
    x = keras.layers.Dense(4, name="stem")(image)
    x = keras.layers.BatchNormalization(name="stem_norm")(x)
    model = keras.Model(image, keras.layers.Dense(2, name="head_1", dtype="float32")(x))
    keras.config.set_dtype_policy(before)
    optimizer = optimizers.make_optimizer(settings)
    optimizers.fit_to(optimizer, model, settings)
    model.compile(optimizer, loss="mean_squared_error", run_eagerly=True)
    if policy == "mixed_float16":
        model.optimizer.initial_scale = 256.0  # with Keras' own the first step may overflow
    return model


def train_step(model, step):
    rng = np.random.default_rng(step)
    model.train_on_batch(rng.normal(size=(8, 5)), rng.normal(size=(8, 2)))


def read(model):
    return [weight.numpy().copy() for weight in model.weights]


def read_average(model):
    with averaging.averaged(model):
        return read(model)


def same(first, second):
    return all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("ema", "momenta"), [(0.9, (0, 2 / 11, 3 / 12, 4 / 13, 5 / 14)), (0.2, (0, 2 / 11, 0.2, 0.2, 0.2))]
)
def test_average_of_five_steps_by_hand(ema, momenta):
    """It starts from the weights of the first update; then its momentum is (1 + t) / (10 + t), or the recipe's."""
    optimizer = optimizers.make_optimizer(settings_of(ema=ema, momentum=0.0, schedule="constant", clip_norm=0.0))
    weight = keras.Variable([1.0, -2.0])
    position, expected = np.array([1.0, -2.0]), np.zeros(2)
    for step, momentum in enumerate(momenta):
        gradient = np.random.default_rng(step).normal(size=2)
        optimizer.apply([keras.ops.convert_to_tensor(gradient, "float32")], [weight])
        position -= 0.1 * gradient
        expected = momentum * expected + (1 - momentum) * position
        found = optimizer._model_variables_moving_average[0].numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=str(step))
    np.testing.assert_allclose(weight, position, rtol=1e-5)


def test_momentum_ends_at_the_recipes():
    """After 1,000 updates (1 + t) / (10 + t) is .991, and the average follows a jump by a tenth."""
    optimizer = optimizers.make_optimizer(settings_of(steps=2000))
    weight = keras.Variable([0.0])
    optimizer.build([weight])
    optimizer._iterations.assign(1000)
    weight.assign([1.0])
    optimizer.apply([keras.ops.zeros(1)], [weight])
    np.testing.assert_allclose(optimizer._model_variables_moving_average[0], [0.1], rtol=1e-5)


def test_under_accumulation_the_average_moves_with_the_updates():
    accumulated = small_model(accumulate=3)
    expected, momenta = None, (0, 2 / 11, 3 / 12)
    count = len(accumulated.trainable_variables)
    for step in range(9):
        before = read_average(accumulated)
        train_step(accumulated, step)
        after = [weight.numpy() for weight in accumulated.trainable_variables]
        if step < 2:  # there is none before the first update
            assert same(read_average(accumulated), read(accumulated))
        elif step % 3 < 2:
            assert same(read_average(accumulated)[:2], before[:2])
        else:
            momentum = momenta[step // 3]
            expected = after if expected is None else expected
            expected = [momentum * old + (1 - momentum) * new for old, new in zip(expected, after, strict=True)]
            found = accumulated.optimizer._model_variables_moving_average
            assert len(found) == count
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_swapped_in_and_out_again_bit_by_bit():
    model = small_model()
    for step in range(4):
        train_step(model, step)
    raw = read(model)
    average = [value.numpy() for value in model.optimizer._model_variables_moving_average]
    with averaging.averaged(model):
        assert same([weight.numpy() for weight in model.trainable_variables], average)
        assert not same(read(model), raw)
        statistics = [weight.numpy() for weight in model.non_trainable_variables]
    assert same(read(model), raw)
    assert same(statistics, [weight.numpy() for weight in model.non_trainable_variables])  # one set of these


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit])
def test_swapped_out_when_something_fails_inside(kind):
    model = small_model()
    for step in range(2):
        train_step(model, step)
    raw = read(model)
    with pytest.raises(kind), averaging.averaged(model):
        assert not same(read(model), raw)
        raise kind
    assert same(read(model), raw)


def test_training_goes_on_as_if_nobody_had_looked():
    watched, alone = small_model(), small_model()
    alone.set_weights(watched.get_weights())
    for step in range(4):
        read_average(watched)
        for model in (watched, alone):
            train_step(model, step)
    assert same(read(watched), read(alone))
    for one, other in zip(watched.optimizer.variables, alone.optimizer.variables, strict=True):
        assert np.array_equal(one.numpy(), other.numpy())


def test_before_the_first_step_there_are_the_weights_alone():
    model = small_model()
    raw = read(model)
    assert same(read_average(model), raw)
    model.optimizer.build(model.trainable_variables)
    assert same(read_average(model), raw)


@pytest.mark.parametrize("accumulate", [1, 8])
def test_the_end_of_fit_leaves_the_weights_that_learn(accumulate):
    """Keras would put the average in their place, zeros where there has been no update."""
    model, twin = small_model(accumulate=accumulate), small_model(accumulate=accumulate)
    twin.set_weights(model.get_weights())
    rng = np.random.default_rng(0)
    images, targets = rng.normal(size=(24, 5)), rng.normal(size=(24, 2))
    model.fit(images, targets, batch_size=8, shuffle=False, verbose=0)
    for start in (0, 8, 16):
        twin.train_on_batch(images[start : start + 8], targets[start : start + 8])
    assert same(read(model), read(twin))
    assert same(read_average(model), read(model)) == (accumulate == 8)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_averages_float32_weights(policy):
    """Under float16 Keras wraps the optimizer in one that scales the loss."""
    model = small_model(policy, heads_rate=2.0)
    assert (model.optimizer.name == "loss_scale_optimizer") == (policy == "mixed_float16")
    assert averaging.has_average(model)
    assert type(averaging._optimizer(model)) is optimizers.SGD
    expected = None
    for step, momentum in enumerate((0, 2 / 11, 3 / 12)):
        train_step(model, step)
        weights = [weight.numpy() for weight in model.trainable_variables]
        expected = weights if expected is None else expected
        expected = [momentum * old + (1 - momentum) * new for old, new in zip(expected, weights, strict=True)]
    raw = read(model)
    with averaging.averaged(model):
        for weight, value in zip(model.trainable_variables, expected, strict=True):
            assert weight.dtype == "float32"
            np.testing.assert_allclose(weight, value, rtol=1e-4, atol=1e-6)
    assert same(read(model), raw)


def test_rates_by_group_inside_the_optimizer_that_scales_the_loss():
    models = small_model("mixed_float16"), small_model("mixed_float16", heads_rate=2.0)
    models[1].set_weights(models[0].get_weights())
    before = [weight.numpy().copy() for weight in models[0].trainable_variables]
    for model in models:
        train_step(model, 0)
    for weight, other, start in zip(
        models[0].trainable_variables, models[1].trainable_variables, before, strict=True
    ):
        factor = 2.0 if "head_1" in weight.path else 1.0
        np.testing.assert_allclose(other - start, factor * (weight - start), rtol=1e-3, atol=1e-6)
    assert not np.array_equal(before[-2], models[0].trainable_variables[-2])


def test_a_step_that_overflows_leaves_the_average():
    model = small_model("mixed_float16")
    for step in range(3):
        train_step(model, step)
    before = read_average(model)
    count = len(model.trainable_variables)
    kernel = model.trainable_variables[0].numpy()
    model.train_on_batch(np.full((8, 5), 1e6), np.zeros((8, 2)))  # float16 ends at 65504
    assert int(model.optimizer.iterations) == 3
    assert np.array_equal(model.trainable_variables[0].numpy(), kernel)
    after = read_average(model)
    assert same(before[:2], after[:2]) and count == 6


def test_variables_of_several_devices_are_swapped_as_well():
    """MirroredStrategy's are no numbers to Python, on one device neither."""
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        model = small_model()
        model.optimizer.build(model.trainable_variables)
        assert type(model.optimizer.iterations.value).__name__ == "MirroredVariable"
        model.optimizer._iterations.assign(1)
        raw = [weight.numpy() for weight in model.trainable_variables]
        for average, value in zip(model.optimizer._model_variables_moving_average, raw, strict=True):
            average.assign(value + 1)
        with averaging.averaged(model):
            assert same([weight.numpy() for weight in model.trainable_variables], [value + 1 for value in raw])
        assert same([weight.numpy() for weight in model.trainable_variables], raw)


def test_variants_are_the_files_of_a_checkpoint():
    plain, model = small_model(ema=0.0), small_model()
    assert list(averaging.variants(plain)) == [runs.WEIGHTS]
    assert list(averaging.variants(model)) == [runs.WEIGHTS, runs.AVERAGE]
    assert [averaging.name(file) for file in averaging.variants(model)] == ["raw", "average"]
    for step in range(2):
        train_step(model, step)
    found = {}
    for file, context in averaging.variants(model).items():
        with context:
            found[file] = read(model)
    assert same(found[runs.WEIGHTS], read(model))
    assert same(found[runs.AVERAGE], read_average(model))


def validation(monkeypatch, model, score):
    """A reports.Validation of two images, whose numbers are `score` (the model)."""
    truths = [types.SimpleNamespace(source_id=name) for name in ("a", "b")]
    monkeypatch.setattr(reports, "Predictor", lambda *_: None)
    monkeypatch.setattr(reports.reader, "read_examples", lambda _: truths)
    found = lambda: {name: float(model.weights[0].numpy()[0, 0]) for name in ("a", "b")}  # noqa: E731
    monkeypatch.setattr(reports.evaluate, "detect", lambda *_: (found(), 1.0))
    monkeypatch.setattr(reports.evaluate, "score", lambda *_: {"mAP": score(model), "metric": "voc07"})
    run = types.SimpleNamespace(config=configs.Config(), label_map=None)
    records = types.SimpleNamespace(label_map=None)
    return reports.Validation(types.SimpleNamespace(model=model, anchors=None), run, records)


@pytest.mark.parametrize("better", ["raw", "average", "neither"])
def test_validation_scores_both_and_keeps_the_better(monkeypatch, better):
    model = small_model()
    for step in range(3):
        train_step(model, step)
    raw, average = (weights[0][0, 0] for weights in (read(model), read_average(model)))
    assert raw != average
    scores = {raw: 0.25, average: 0.5} if better == "average" else {raw: 0.5, average: 0.25}
    if better == "neither":
        scores = {raw: 0.5, average: 0.5}
    checked = validation(monkeypatch, model, lambda model: scores[model.weights[0].numpy()[0, 0]])
    result = checked()
    assert result["by_weights"] == {runs.WEIGHTS: scores[raw], runs.AVERAGE: scores[average]}
    assert (result["mAP"], result["metric"]) == (0.5, "voc07")
    assert result["weights"] == (runs.AVERAGE if better == "average" else runs.WEIGHTS)
    drawn = average if better == "average" else raw
    assert checked.found == [drawn, drawn]  # the pictures show what the better weights found
    assert checked.result is result
    assert model.weights[0].numpy()[0, 0] == raw


@pytest.mark.parametrize(("scores", "weights"), [((None, 0.0), runs.AVERAGE), ((None, None), runs.WEIGHTS)])
def test_a_score_that_does_not_exist_is_the_worse_one(monkeypatch, scores, weights):
    model = small_model()
    for step in range(2):
        train_step(model, step)
    left = list(scores)
    result = validation(monkeypatch, model, lambda _: left.pop(0))()
    assert result["weights"] == weights
    assert result["by_weights"] == dict(zip((runs.WEIGHTS, runs.AVERAGE), scores, strict=True))


def test_without_an_average_validation_scores_once(monkeypatch):
    model = small_model(ema=0.0)
    left = [0.75]
    result = validation(monkeypatch, model, lambda _: left.pop())()
    assert (result["weights"], result["by_weights"]) == (runs.WEIGHTS, {runs.WEIGHTS: 0.75})
