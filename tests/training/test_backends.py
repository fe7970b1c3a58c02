"""Training on JAX beside TensorFlow: the same losses, checkpoints that either goes on from, the same detections."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import backend_run
import h5py
import numpy as np
import pytest
import small_network

from ssd_tf import runs
from ssd_tf.models import registry
from ssd_tf.training import callbacks, checkpoint

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("jax") is None, reason="needs jax, Keras' other backend (pip install jax)"
)
_STEPS = 20
_TOLERANCE = {"rtol": 1e-3, "atol": 1e-3}


@pytest.fixture(scope="module")
def trainings(drawn_records, tmp_path_factory):
    """Run directories of one training: `tensorflow`, `jax`, and `mixed`, which has JAX's first half and TensorFlow's
    second. Beside them what JAX `found` at its end."""
    folder, records = tmp_path_factory.mktemp("backends"), str(drawn_records)
    paths = {name: str(folder / name) for name in ("origin", "tensorflow", "jax", "mixed")}
    before = dict(registry._BACKBONES)
    small_network.register()
    try:
        # The backends draw different random numbers: both begin with the weights of one run.
        backend_run.train(records, paths["origin"], steps=1)
        backend_run.train(records, paths["tensorflow"], paths["origin"])
        found = run_on_jax(records, paths["origin"], paths["jax"])
        copy_half(paths["jax"], paths["mixed"])
        backend_run.train(records, paths["mixed"])
        yield SimpleNamespace(**paths, found=found)
    finally:
        registry._BACKBONES.clear()
        registry._BACKBONES.update(before)


def copy_half(run_dir, target):
    """Copies a run as it was at its first checkpoint."""
    shutil.copytree(run_dir, target)
    first, last = sorted(Path(target).glob("step-*"))
    shutil.rmtree(last)
    (Path(target) / "LATEST").write_text(first.name, "utf-8")


def run_on_jax(*arguments):
    """Runs backend_run.py in a process of its own: Keras chooses its backend when it is imported."""
    done = subprocess.run(
        [sys.executable, backend_run.__file__, *arguments],
        env={**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def read_losses(run_dir):
    """float [steps, 3]: loss, class loss and box loss of every step."""
    lines = (Path(run_dir) / callbacks.LOG_JSONL).read_text("utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if "loss" in row]
    assert [row["step"] for row in rows] == list(range(1, _STEPS + 1))
    return np.array([[row["loss"], row["class_loss"], row["box_loss"]] for row in rows])


def read_state(run_dir):
    """{name: array} of the last checkpoint: its weights and its optimizer's variables."""
    found, values = runs.find_checkpoint(run_dir), {}
    with h5py.File(found.path / runs.WEIGHTS) as file:
        file.visititems(lambda name, node: values.update({name: node[()]} if hasattr(node, "shape") else {}))
    with np.load(found.path / checkpoint.OPTIMIZER) as file:
        return {**values, **file}


@pytest.mark.parametrize("name", ["jax", "mixed"])
def test_losses_are_those_of_tensorflow(trainings, name):
    expected, losses = read_losses(trainings.tensorflow), read_losses(getattr(trainings, name))
    assert len(np.unique(expected[:, 0])) == _STEPS
    np.testing.assert_allclose(losses, expected, **_TOLERANCE)


@pytest.mark.parametrize("name", ["jax", "mixed"])
def test_checkpoints_are_those_of_tensorflow(trainings, name):
    """Weights and momenta stand at the same places, and are the same numbers."""
    expected, values = read_state(trainings.tensorflow), read_state(getattr(trainings, name))
    assert values.keys() == expected.keys()
    origin = read_state(trainings.origin)
    assert sum(not np.array_equal(origin[key], expected[key]) for key in expected) > len(expected) / 2
    for key, value in expected.items():
        np.testing.assert_allclose(values[key], value, err_msg=key, **_TOLERANCE)


def test_each_half_was_made_by_its_backend(trainings):
    found = [sorted(Path(path).glob("step-*")) for path in (trainings.mixed, trainings.tensorflow)]
    first, last, *others = (json.loads((path / "state.json").read_text("utf-8")) for path in sum(found, []))
    assert (first["versions"].keys() ^ last["versions"].keys()) == {"jax", "tensorflow"}
    assert "jax" in first["versions"] and all("tensorflow" in state["versions"] for state in others)


def test_detections_are_those_of_tensorflow(trainings):
    for found, expected in zip(trainings.found, backend_run.detect(trainings.jax), strict=True):
        assert len(expected) > 10
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)
