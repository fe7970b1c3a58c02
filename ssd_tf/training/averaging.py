"""The two sets of weights of a training with train.ema: those that learn, and their moving average."""

import contextlib

import keras

from ssd_tf import runs

_NAMES = {runs.WEIGHTS: "raw", runs.AVERAGE: "average"}


def has_average(model):
    """Returns whether a compiled model's optimizer keeps a moving average of the weights."""
    return _optimizer(model).use_ema


def variants(model):
    """Returns {checkpoint's file: context in which the model has these weights}, the average last."""
    found = {runs.WEIGHTS: contextlib.nullcontext()}
    if has_average(model):
        found[runs.AVERAGE] = averaged(model)
    return found


def name(file):
    """Returns the word for the weights in a checkpoint's file: raw or average."""
    return _NAMES[file]


@contextlib.contextmanager
def averaged(model):
    """Inside, a compiled model has its averaged weights, which it must not be trained with."""
    optimizer, pairs = _optimizer(model), []
    updates = keras.ops.convert_to_numpy(optimizer.iterations)
    if optimizer.built and updates > 0:  # before the first there is no average
        pairs = list(zip(model.trainable_variables, optimizer._model_variables_moving_average, strict=True))
    before = [keras.ops.convert_to_numpy(variable) for variable, _ in pairs]
    try:
        for variable, average in pairs:
            variable.assign(keras.ops.convert_to_numpy(average))
        yield
    finally:
        for (variable, _), value in zip(pairs, before, strict=True):
            variable.assign(value)


def _optimizer(model):
    """The recipe's own optimizer, inside the one that scales the loss under mixed_float16."""
    return getattr(model.optimizer, "inner_optimizer", model.optimizer)
