"""Training on JAX beside TensorFlow: the same losses and detections, checkpoints that either goes on from."""

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
_COMPILE_FAST = "--xla_backend_optimization_level=0"  # nothing here runs long enough to repay the compiler's work
_TOLERANCE = {"rtol": 1e-3, "atol": 1e-3}


@pytest.fixture(scope="module")
def trainings(drawn_records, tmp_path_factory):
    """Run directories of one training: `tensorflow`, `jax`, and `mixed`, the first half JAX's, the second
    TensorFlow's. Beside them what JAX `found` at its end."""
    folder, records = tmp_path_factory.mktemp("backends"), str(drawn_records)
    paths = {name: str(folder / name) for name in ("origin", "tensorflow", "jax", "mixed")}
    before = dict(registry._BACKBONES)
    small_network.register()
    try:
        # The backends draw different random numbers: both begin with the weights of one run.
        backend_run.train(records, paths["origin"], steps=1)
        backend_run.train(records, paths["tensorflow"], paths["origin"])
        found = run_on_jax(backend_run.__file__, records, paths["origin"], paths["jax"])
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
    """Runs Python with these arguments: Keras chooses its backend when it is imported. Returns the last line."""
    chosen = {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": _COMPILE_FAST}
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **chosen},
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
    folders = sorted(Path(trainings.mixed).glob("step-*"))
    first, second = (json.loads((folder / "state.json").read_text("utf-8"))["versions"] for folder in folders)
    assert "jax" in first and "tensorflow" not in first
    assert "tensorflow" in second and "jax" not in second


def test_detections_are_those_of_tensorflow(trainings):
    for found, expected in zip(trainings.found, backend_run.detect(trainings.jax), strict=True):
        assert len(expected) > 10
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


WITHOUT_TENSORFLOW = """
import json, sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "cv2", "PIL"):
            raise ModuleNotFoundError(f"blocked: {name}")

sys.meta_path.insert(0, Block())
import numpy as np
from ssd_tf.config import PostprocessConfig
from ssd_tf.inference.postprocess import postprocess

anchors = np.float32([[0, 0, 1, 0.5], [0, 0, 0.9, 0.5], [0.5, 0.5, 1, 1]])
outputs = {"class_logits": np.float32([[[0, 3], [0, 2], [0, 1]]]), "box_deltas": np.zeros((1, 3, 4), np.float32)}
found = postprocess(outputs, anchors, PostprocessConfig(max_detections=4), True)
print(json.dumps([np.asarray(values)[0].tolist() for values in found]))
"""


def test_postprocessing_needs_no_tensorflow():
    """The second box overlaps the first by .9."""
    boxes, scores, classes, count = run_on_jax("-c", WITHOUT_TENSORFLOW)
    assert (count, classes[:2]) == (2, [1, 1])
    np.testing.assert_allclose(boxes[:2], [[0, 0, 1, 0.5], [0.5, 0.5, 1, 1]], atol=1e-6)
    np.testing.assert_allclose(scores, [1 / (1 + np.exp(-3)), 1 / (1 + np.exp(-1)), 0, 0], rtol=1e-5)
