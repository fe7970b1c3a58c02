"""A compiled model to a checkpoint and back."""

import dataclasses
import hashlib

import keras
import numpy as np
import pytest

from ssd_tf import config as configs
from ssd_tf import runs
from ssd_tf.errors import DataError
from ssd_tf.structures import LabelMap
from ssd_tf.training import averaging, checkpoint, optimizers

SETTINGS = configs.TrainConfig(steps=20, warmup=0.2, learning_rate=0.05, keep_last=2)


@pytest.fixture
def run(tmp_path):
    config = dataclasses.replace(configs.Config(), train=SETTINGS)
    return runs.start_run(tmp_path / "run", config, LabelMap(("cat",)), 8)


def small_model(width=3):
    """A compiled model with a batch norm, so that there are statistics to keep as well."""
    image = keras.Input((5,))
    x = keras.layers.Dense(width)(image)
    x = keras.layers.BatchNormalization()(x)
    model = keras.Model(image, keras.layers.Dense(1)(x))
    model.compile(optimizers.make_optimizer(SETTINGS), loss="mean_squared_error")
    model.run_eagerly = True
    return model


ALL = {"ema": 0.9, "accumulate": 3, "backbone_rate": 0.5, "heads_rate": 4.0, "weight_decay": 0.01}


def recipe_model(policy="float32", **settings):
    """A compiled model as a recipe asks for it, of two groups; the same weights at every call."""
    settings = dataclasses.replace(SETTINGS, **settings)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    image = keras.Input((5,))
    x = keras.layers.Dense(3, name="stem")(image)
    x = keras.layers.BatchNormalization(name="stem_norm")(x)
    model = keras.Model(image, keras.layers.Dense(1, dtype="float32", name="head_1")(x))
    keras.config.set_dtype_policy(before)
    rng = np.random.default_rng(5)
    model.set_weights([rng.uniform(0.1, 1, weight.shape) for weight in model.weights])
    optimizer = optimizers.make_optimizer(settings)
    optimizers.fit_to(optimizer, model, settings)
    model.compile(optimizer, loss="mean_squared_error", run_eagerly=True)
    return model


def take_steps(model, first, last):
    """Trains on batches that depend on the step alone."""
    for step in range(first, last):
        rng = np.random.default_rng(step)
        model.train_on_batch(rng.normal(size=(8, 5)), rng.normal(size=(8, 1)))


def test_restored_training_goes_on_as_if_nothing_had_happened(run):
    whole = small_model()
    take_steps(whole, 0, 3)
    checkpoint.save(run, whole, 3)
    take_steps(whole, 3, 5)
    again = small_model()
    found = runs.find_checkpoint(run.path)
    checkpoint.restore(found, again)
    assert int(again.optimizer.iterations) == 3
    schedule = optimizers.make_schedule(SETTINGS)
    assert float(again.optimizer.learning_rate) == float(schedule(3)) != float(schedule(0))
    assert found.state["step"] == 3
    assert found.state["examples"] == 96
    take_steps(again, 3, 5)
    for first, second in zip(whole.weights + whole.optimizer.variables, again.weights + again.optimizer.variables):
        assert np.array_equal(first.value, second.value), first.path


def test_without_the_optimizer_state_the_steps_differ():
    """The test above can fail: momentum and step count matter."""
    whole = small_model()
    take_steps(whole, 0, 3)
    again = small_model()
    again.set_weights(whole.get_weights())
    take_steps(whole, 3, 5)
    take_steps(again, 3, 5)
    assert not np.allclose(whole.layers[1].kernel, again.layers[1].kernel, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:Skipping nested container")  # Keras' own, before it raises
def test_weights_of_another_network(run):
    model = small_model()
    take_steps(model, 0, 1)
    checkpoint.save(run, model, 1)
    found = runs.find_checkpoint(run.path)
    with pytest.raises(DataError, match=r"weights do not fit the run's config: .*step-00000001") as caught:
        checkpoint.load_weights(found, small_model(width=4))
    assert "\n" not in str(caught.value)


def test_state_of_another_optimizer(run):
    model = small_model()
    take_steps(model, 0, 1)
    checkpoint.save(run, model, 1)
    other = small_model()
    other.compile(keras.optimizers.Adam(), loss="mean_squared_error")
    with pytest.raises(DataError, match=r"do(es)? not fit.*: .*step-00000001"):
        checkpoint.restore(runs.find_checkpoint(run.path), other)


def test_damaged_weights_are_noticed_and_the_checkpoint_before_serves(run):
    model = small_model()
    kernels = []
    for step in (1, 2):
        take_steps(model, step - 1, step)
        checkpoint.save(run, model, step)
        kernels.append(model.layers[1].kernel.value.numpy())
    file = run.path / "step-00000002" / runs.WEIGHTS
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    found = runs.find_checkpoint(run.path)
    assert (found.path.name, found.skipped) == ("step-00000001", ("step-00000002",))
    again = small_model()
    checkpoint.restore(found, again)
    assert np.array_equal(again.layers[1].kernel, kernels[0])
    assert not np.array_equal(kernels[0], kernels[1])


def test_state_says_what_a_checkpoint_was_made_with(run):
    model = small_model()
    take_steps(model, 0, 2)
    best = {"checkpoint": "step-00000001", "metric": "voc", "value": 0.5}
    checkpoint.save(run, model, 2, best, deterministic=True)
    found = runs.find_checkpoint(run.path)
    state = found.state
    assert (state["step"], state["examples"], state["seed"], state["best"]) == (2, 64, 0, best)
    assert state["deterministic"] is True
    assert state["config_sha256"] == runs.config_digest(run.config)
    assert {"ssd_tf", "python", "numpy", "keras", keras.backend.backend()} == set(state["versions"])
    assert state["versions"]["numpy"] == np.__version__
    assert set(state["files"]) == {runs.WEIGHTS, checkpoint.OPTIMIZER}
    for name, (size, digest) in state["files"].items():
        data = (found.path / name).read_bytes()
        assert (size, digest) == (len(data), hashlib.sha256(data).hexdigest())


def test_checkpoint_without_the_optimizer(run):
    model = small_model()
    take_steps(model, 0, 1)
    runs.save_checkpoint(run.path, 1, lambda place: model.save_weights(place / runs.WEIGHTS), {}, 2)
    with pytest.raises(DataError, match=r"^no training can go on from here, it has no optimizer\.npz: .*step-0"):
        checkpoint.restore(runs.find_checkpoint(run.path), small_model())


def read(model):
    return [weight.numpy() for weight in model.weights]


def same(first, second):
    return all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize(
    ("settings", "step"),
    [
        ({"optimizer": "sgd", **ALL}, 3),
        ({"optimizer": "sgd", **ALL}, 4),  # in the middle of an update
        ({"optimizer": "adamw", **ALL}, 2),  # before the first
        ({"optimizer": "rmsprop", **ALL, "accumulate": 1}, 3),
        ({"optimizer": "adam", **ALL, "ema": 0.0}, 5),
    ],
)
def test_averages_groups_and_half_an_update_go_on_bit_by_bit(run, policy, settings, step):
    whole = recipe_model(policy, **settings)
    take_steps(whole, 0, step)
    checkpoint.save(run, whole, step)
    take_steps(whole, step, step + 5)
    again = recipe_model(policy, **settings)
    again.set_weights([weight + 1 for weight in again.get_weights()])
    checkpoint.restore(runs.find_checkpoint(run.path), again)
    take_steps(again, step, step + 5)
    variables = zip(
        whole.weights + whole.optimizer.variables, again.weights + again.optimizer.variables, strict=True
    )
    for first, second in variables:
        assert np.array_equal(first.value, second.value), first.path
    names = {variable.name for variable in again.optimizer.variables}
    assert ("dynamic_scale" in names) == (policy == "mixed_float16")
    if settings["ema"]:
        with averaging.averaged(whole), averaging.averaged(again):
            assert same(read(whole), read(again))


def test_a_checkpoint_shows_the_average_and_goes_on_from_the_weights(run):
    model = recipe_model(ema=0.9)
    take_steps(model, 0, 4)
    checkpoint.save(run, model, 4)
    raw = read(model)
    with averaging.averaged(model):
        average = read(model)
    assert not same(raw, average)
    found = runs.find_checkpoint(run.path)
    assert set(found.state["files"]) == {runs.WEIGHTS, runs.AVERAGE, checkpoint.OPTIMIZER}
    assert found.weights == runs.AVERAGE
    shown, resumed = recipe_model(ema=0.9), recipe_model(ema=0.9)
    checkpoint.load_weights(found, shown)
    assert same(read(shown), average)
    checkpoint.restore(found, resumed)
    assert same(read(resumed), raw)
    plain = recipe_model()  # whoever only looks needs no average of its own
    checkpoint.load_weights(runs.find_checkpoint(run.path, "step-4"), plain)
    assert same(read(plain), average)


@pytest.mark.parametrize("file", [runs.WEIGHTS, runs.AVERAGE])
def test_the_best_shows_the_weights_that_scored_better(run, file):
    model = recipe_model(ema=0.9)
    take_steps(model, 0, 2)
    checkpoint.save(run, model, 2)
    variants = {}
    for name, context in averaging.variants(model).items():
        with context:
            variants[name] = read(model)
    runs.mark_best(run.path, 2, "voc07", 0.5, file)
    take_steps(model, 2, 3)
    checkpoint.save(run, model, 3)
    shown = recipe_model()
    checkpoint.load_weights(runs.find_checkpoint(run.path, "best"), shown)
    assert same(read(shown), variants[file])
    assert not same(*variants.values())


def test_before_the_first_update_a_checkpoint_has_the_weights_twice(run):
    model = recipe_model(ema=0.9, accumulate=4)
    take_steps(model, 0, 3)
    checkpoint.save(run, model, 3)
    found = runs.find_checkpoint(run.path)
    shown = recipe_model()
    checkpoint.load_weights(found, shown)
    assert same(read(shown)[:2], read(model)[:2])


def test_a_damaged_average_is_damage(run):
    model = recipe_model(ema=0.9)
    for step in (1, 2):
        take_steps(model, step - 1, step)
        checkpoint.save(run, model, step)
    file = run.path / "step-00000002" / runs.AVERAGE
    file.write_bytes(file.read_bytes()[:-1])
    found = runs.find_checkpoint(run.path)
    assert (found.path.name, found.skipped) == ("step-00000001", ("step-00000002",))
