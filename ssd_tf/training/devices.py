"""What training asks of the machine: memory as it is needed, equal results, and one line where it refuses."""

import contextlib

import keras
import tensorflow as tf

from ssd_tf.errors import EnvironmentFault

_MEMORY_WORDS = (
    "RESOURCE_EXHAUSTED",  # JAX
    "Dst tensor is not initialized",  # TensorFlow, copying to a full GPU
    "CUDA_ERROR_OUT_OF_MEMORY",
    "failed to allocate memory",
    "OOM when allocating",  # TensorFlow, where Keras made another error of it
)


def let_memory_grow():
    """Makes TensorFlow take a GPU's memory as it needs it, and none of it where another backend trains."""
    if keras.backend.backend() != "tensorflow":
        with contextlib.suppress(RuntimeError):  # in use already
            tf.config.set_visible_devices([], "GPU")
        return
    for device in tf.config.list_physical_devices("GPU"):
        with contextlib.suppress(RuntimeError):  # in use already
            tf.config.experimental.set_memory_growth(device, True)


def set_seed(seed):
    """Seeds Keras, TensorFlow, NumPy and Python."""
    keras.utils.set_random_seed(seed)


def name_device():
    """Returns the name of the first accelerator, or of the CPU."""
    if keras.backend.backend() == "torch":  # Keras has no list of its devices
        return keras.ops.zeros(()).device.type
    names = keras.distribution.list_devices()
    return next((name for name in names if "cpu" not in name.lower()), names[0] if names else "cpu")


def make_deterministic():
    """Lets this process use deterministic operations alone, from here on.

    Returns:
      list of lines: what stays beyond its reach.
    """
    tf.config.experimental.enable_op_determinism()
    if keras.backend.backend() == "jax":
        return ["--deterministic: on a GPU, JAX needs XLA_FLAGS=--xla_gpu_deterministic_ops=true besides"]
    return []


@contextlib.contextmanager
def refusals(config):
    """Turns what a device refuses into an EnvironmentFault: memory, or an operation without a deterministic form.

    Args:
      config: Config; the message names the keys that decide how much memory is needed.
    """
    try:
        yield
    except Exception as error:
        if _is_out_of_memory(error):
            raise EnvironmentFault(_memory_line(config)) from error
        if isinstance(error, tf.errors.UnimplementedError) and "determinis" in error.message.lower():
            reason = error.message.strip().splitlines()[0][:160]
            raise EnvironmentFault(f"train without --deterministic, or on a CPU: {reason}") from error
        raise


def _is_out_of_memory(error):
    if "No space left" in str(error):  # a full disk has the same code
        return False
    known = isinstance(error, (MemoryError, tf.errors.ResourceExhaustedError))
    return known or (isinstance(error, RuntimeError | tf.errors.OpError) and _names_memory(error))


def _names_memory(error):
    return any(words in str(error) for words in _MEMORY_WORDS)


def _memory_line(config):
    height, width = config.model.image_size
    size = f"model.image_size ({width}x{height})"
    line = f"out of memory: lower train.batch_size ({config.train.batch_size}) or {size}"
    if config.train.precision == "float32":
        line += ", or set train.precision=mixed_bfloat16"
    return line
