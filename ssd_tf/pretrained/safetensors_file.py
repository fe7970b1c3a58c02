"""Files of the safetensors format, read array by array."""

import contextlib
import os

import numpy as np

from ssd_tf.errors import DataError, EnvironmentFault, shown

_TYPES = ("F16", "F32", "F64")


@contextlib.contextmanager
def open_safetensors(path):
    """Opens a file; only its header is read until an array is asked for.

    Args:
      path: the file.

    Yields:
      ({name: shape}, function from a name to its array, float32).

    Raises:
      DataError: unreadable, damaged, or no floating-point numbers; the caller names the file.
      EnvironmentFault: the package safetensors is missing; names the extra.
    """
    try:
        import safetensors
    except ImportError:
        raise EnvironmentFault(
            f"safetensors is not installed (pip install safetensors, or the extra ssd_tf[import]): {shown(path)}"
        ) from None
    with contextlib.ExitStack() as stack:
        with _read_errors(safetensors.SafetensorError):
            file = stack.enter_context(safetensors.safe_open(path, framework="np"))
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118

        def read(name):
            with _read_errors(safetensors.SafetensorError):
                return _read(file, name)

        yield shapes, read


@contextlib.contextmanager
def _read_errors(damage):
    """Words the errors of reading, and only those: what the caller does with the file open is its own."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno).lower() if error.errno else shown(error)[:120]
        raise DataError(f"cannot read: {reason}") from None
    except damage as error:
        raise DataError(f"cannot read safetensors: {shown(error)[:120]}") from None


def _read(file, name):
    kind = file.get_slice(name).get_dtype()
    if kind not in _TYPES:
        raise DataError(f"{shown(name)[:80]} is of type {kind}, expected one of {', '.join(_TYPES)}")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, which the caller refuses
        return file.get_tensor(name).astype(np.float32, copy=False)
