"""Model and optimizer to a checkpoint's files and back."""

import math
import platform
import sys
import warnings
from importlib import resources

import keras
import numpy as np

from ssd_tf import runs, weight_files
from ssd_tf.errors import DataError, shown
from ssd_tf.training import averaging

OPTIMIZER = "optimizer.npz"
_WIDEST = 4  # bytes of a float32: under every precision the variables are


def save(run, model, step, best=None, deterministic=False):
    """Writes a checkpoint of a compiled model.

    Args:
      run: runs.Run.
      model: compiled keras.Model.
      step: training step.
      best: the best validation so far (see runs.read_best), or None.
      deterministic: whether the session trains with deterministic operations alone.
    """

    def write(directory):
        for name, context in averaging.variants(model).items():
            with context:
                _bare(model).save_weights(directory / name)
        values = {f"{i:04d}": keras.ops.convert_to_numpy(v) for i, v in enumerate(model.optimizer.variables)}
        np.savez(directory / OPTIMIZER, **values)

    state = {
        "examples": step * run.config.train.batch_size,
        "seed": run.config.train.seed,
        "best": best,
        "deterministic": deterministic,
        "config_sha256": runs.config_digest(run.config),
        "versions": _versions(),
    }
    runs.save_checkpoint(run.path, step, write, state, run.config.train.keep_last)


def gather(model):
    """Puts what a model has learnt so far into its variables, which Keras leaves empty inside fit on JAX."""
    getattr(model, "jax_state_sync", lambda: None)()


def _versions():
    """Of all that decides what a step computes."""
    backend = keras.backend.backend()
    return {
        "ssd_tf": resources.files("ssd_tf").joinpath("VERSION").read_text("utf-8").strip(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "keras": keras.__version__,
        backend: sys.modules[backend].__version__,
    }


def restore(checkpoint, model):
    """Loads a checkpoint into a compiled model, optimizer included.

    Args:
      checkpoint: runs.Checkpoint.
      model: compiled keras.Model of the same configuration.

    Raises:
      DataError: the files do not fit the model.
    """
    _load(checkpoint.path / runs.WEIGHTS, model)
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    if not (checkpoint.path / OPTIMIZER).exists():
        raise DataError(f"no training can go on from here, it has no {OPTIMIZER}: {shown(checkpoint.path)}")
    variables = model.optimizer.variables
    try:
        values = weight_files.read_arrays(checkpoint.path / OPTIMIZER, [variable.shape for variable in variables])
    except DataError as error:  # another number of variables, other shapes
        raise DataError(f"the optimizer's state does not fit: {error}") from error
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def load_weights(checkpoint, model):
    """Loads the weights that a checkpoint shows into a model; DataError if they do not fit."""
    _load(checkpoint.path / checkpoint.weights, model)


def _load(file, model):
    weight_files.check_weights_file(file, _num_bytes(model))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters is said by the error
            _bare(model).load_weights(file)
    except Exception as error:  # Keras and HDF5 raise a dozen kinds over broken files
        reason = (str(error) or type(error).__name__).splitlines()[0][:160]
        raise DataError(f"weights do not fit the run's config: {reason}: {shown(file.parent)}") from error


def _num_bytes(model):
    return sum(math.prod(variable.shape) for variable in model.variables) * _WIDEST


def _bare(model):
    """The same layers without the optimizer, whose state Keras would store in the weights file too."""
    return keras.Model(model.inputs[0], model.output, name=model.name)
