"""What the machine refuses becomes one line; everything else stays what it was."""

import numpy as np
import pytest
import tensorflow as tf

from ssd_tf import config as configs
from ssd_tf.errors import DataError, EnvironmentFault
from ssd_tf.training import devices

CONFIG = configs.replace(configs.Config(), train__batch_size=48, model__image_size=(320, 300))
HINT = "out of memory: lower train.batch_size (48) or model.image_size (300x320)"


def refused(error, config=CONFIG):
    """What becomes of an error."""
    with (
        pytest.raises(type(error) if isinstance(error, DataError) else Exception) as caught,
        devices.refusals(config),
    ):
        raise error
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        np._core._exceptions._ArrayMemoryError((1, 2), np.dtype(float)),
        tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[2,3]"),
        tf.errors.InternalError(None, None, "Dst tensor is not initialized."),
        RuntimeError("Exception encountered when calling Conv2D.call(). OOM when allocating tensor"),
        type("XlaRuntimeError", (RuntimeError,), {})("RESOURCE_EXHAUSTED: Out of memory while trying to allocate"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_out_of_memory(error):
    found = refused(error)
    assert isinstance(found, EnvironmentFault) and found.exit_code == 5
    assert str(found) == f"{HINT}, or set train.precision=mixed_bfloat16"
    smaller = configs.replace(CONFIG, train__precision="mixed_bfloat16")
    assert str(refused(error, smaller)) == HINT


@pytest.mark.parametrize(
    "error",
    [
        tf.errors.ResourceExhaustedError(None, None, "log.tmp; No space left on device"),
        tf.errors.InvalidArgumentError(None, None, "shapes differ"),
        tf.errors.UnimplementedError(None, None, "no such kernel"),
        ValueError("RESOURCE_EXHAUSTED"),
        DataError("a bad record"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_other_errors_stay(error):
    assert refused(error) is error


def test_operation_without_a_deterministic_form():
    error = tf.errors.UnimplementedError(
        None, None, "A deterministic GPU implementation of X is not available.\nx"
    )
    assert str(refused(error)) == (
        "train without --deterministic, or on a CPU: A deterministic GPU implementation of X is not available."
    )


def test_memory_grows_on_every_gpu(monkeypatch):
    asked = []

    def grow(device, enable):
        asked.append((device, enable))
        if device == "used":
            raise RuntimeError("Physical devices cannot be modified after being initialized")

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: {"GPU": ["used", "free"]}[kind])
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", grow)
    devices.let_memory_grow()
    assert asked == [("used", True), ("free", True)]


def test_deterministic_operations_are_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(tf.config.experimental, "enable_op_determinism", lambda: asked.append(True))
    assert devices.make_deterministic() == []
    monkeypatch.setattr("keras.backend.backend", lambda: "jax")
    assert devices.make_deterministic() == [
        "--deterministic: on a GPU, JAX needs XLA_FLAGS=--xla_gpu_deterministic_ops=true besides"
    ]
    assert asked == [True, True]
