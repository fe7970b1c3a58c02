"""Model and optimizer to a checkpoint's files and back."""

import warnings

import keras
import numpy as np

from ssd_tf import runs
from ssd_tf.errors import DataError, shown

OPTIMIZER = "optimizer.npz"


def save(run, model, step):
    """Writes a checkpoint of a compiled model.

    Args:
      run: runs.Run.
      model: compiled keras.Model.
      step: training step.
    """

    def write(directory):
        _bare(model).save_weights(directory / runs.WEIGHTS)
        values = {f"{i:04d}": keras.ops.convert_to_numpy(v) for i, v in enumerate(model.optimizer.variables)}
        np.savez(directory / OPTIMIZER, **values)

    state = {"examples": step * run.config.train.batch_size}
    runs.save_checkpoint(run.path, step, write, state, run.config.train.keep_last)


def restore(checkpoint, model):
    """Loads a checkpoint into a compiled model, optimizer included.

    Args:
      checkpoint: runs.Checkpoint.
      model: compiled keras.Model of the same configuration.

    Raises:
      DataError: the files do not fit the model.
    """
    load_weights(checkpoint, model)
    model.optimizer.build(model.trainable_variables)
    with np.load(checkpoint.path / OPTIMIZER, allow_pickle=False) as values:
        if len(values) != len(model.optimizer.variables):
            raise DataError(f"the optimizer's state does not fit: {shown(checkpoint.path)}")
        for key, variable in zip(sorted(values), model.optimizer.variables):
            variable.assign(values[key])


def load_weights(checkpoint, model):
    """Loads a checkpoint's weights into a model; DataError if they do not fit."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters is said by the error
            _bare(model).load_weights(checkpoint.path / runs.WEIGHTS)
    except (ValueError, OSError, KeyError) as error:
        reason = str(error).splitlines()[0][:160]
        raise DataError(f"weights do not fit the run's config: {reason}: {shown(checkpoint.path)}") from error


def _bare(model):
    """The same layers without the optimizer, whose state Keras would store in the weights file too."""
    return keras.Model(model.inputs[0], model.output, name=model.name)
