"""Checkpoints are written here by TensorFlow in both formats, and read back without what belongs to training."""

import shutil

import numpy as np
import pytest
import tensorflow as tf

from ssd_tf.errors import DataError
from ssd_tf.pretrained import tf_checkpoint

GOOD = {
    "net/weights": np.arange(6, dtype=np.float32).reshape(2, 3),
    "net/biases": np.array([0.5, -1], np.float32),
    "net/scale": np.array(3.0),
}
# Beside the variables of a network: an optimizer's, averages and counters.
TRAINING = {
    "global_step": np.array(7, np.int64),
    "net/weights/RMSProp": np.ones((2, 3), np.float32),
    "net/weights/RMSProp_1": np.ones((2, 3), np.float32),
    "net/weights/ExponentialMovingAverage": np.ones((2, 3), np.float32),
    "net/average/ExponentialMovingAverage": np.array([4, 5], np.float32),
}
VERSIONS = (tf.compat.v1.train.SaverDef.V1, tf.compat.v1.train.SaverDef.V2)
V1, V2 = VERSIONS


def write_checkpoint(folder, arrays, version=V2, name="model.ckpt", step=None, sharded=False):
    """Writes arrays as TensorFlow 1 writes variables; returns the prefix."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variables = [
            tf.compat.v1.get_variable(key, initializer=array, use_resource=False) for key, array in arrays.items()
        ]
        session.run(tf.compat.v1.global_variables_initializer())
        saver = tf.compat.v1.train.Saver(variables, write_version=version, sharded=sharded)
        return folder / saver.save(session, str(folder / name), global_step=step).rpartition("/")[2]


def read_all(path):
    with tf_checkpoint.open_checkpoint(path) as (shapes, read):
        arrays = {name: read(name) for name in shapes}
    assert {name: array.shape for name, array in arrays.items()} == shapes
    assert all(array.dtype == np.float32 for array in arrays.values())
    return arrays


def assert_good(found, extra=()):
    assert set(found) == {*GOOD, *extra}
    for name, array in GOOD.items():
        np.testing.assert_array_equal(found[name], array, name)


def refusal(path):
    with pytest.raises(DataError) as caught:
        read_all(path)
    line = str(caught.value)
    assert line.isprintable()
    return line


@pytest.mark.parametrize("version", VERSIONS)
def test_variables_of_the_network_alone(tmp_path, version):
    found = read_all(write_checkpoint(tmp_path, {**GOOD, **TRAINING}, version))
    assert_good(found, {"net/average"})
    assert found["net/average"].tolist() == [4, 5]


@pytest.mark.parametrize("version", VERSIONS)
def test_averages_where_they_are_wanted(tmp_path, version):
    prefix = write_checkpoint(tmp_path, {**GOOD, **TRAINING}, version)
    with tf_checkpoint.open_checkpoint(prefix, averages=True) as (shapes, read):
        assert set(shapes) == {*GOOD, "net/average"}
        np.testing.assert_array_equal(read("net/weights"), np.ones((2, 3)))
        assert read("net/biases").tolist() == [0.5, -1] and read("net/average").tolist() == [4, 5]


def test_older_format_is_known_by_its_end(tmp_path):
    prefix = write_checkpoint(tmp_path, GOOD, V1, name="weights")
    assert not list(tmp_path.glob("*.index")) and tf_checkpoint.is_checkpoint(prefix)
    prefix.write_bytes(prefix.read_bytes()[:-1])
    assert not tf_checkpoint.is_checkpoint(prefix)
    prefix.write_bytes(b"")
    assert not tf_checkpoint.is_checkpoint(prefix)


def test_half_precision(tmp_path):
    prefix = write_checkpoint(tmp_path, {"a": np.array([0.5, -2], np.float16)})
    assert read_all(prefix)["a"].tolist() == [0.5, -2]


@pytest.mark.parametrize("part", ["", ".index", ".meta", ".data-00000-of-00001"])
def test_any_part_names_a_checkpoint(tmp_path, part):
    prefix = write_checkpoint(tmp_path, GOOD, step=12)
    assert prefix.name == "model.ckpt-12"
    path = prefix.with_name(prefix.name + part)
    assert tf_checkpoint.is_checkpoint(path)
    assert_good(read_all(path))


def test_folder_gives_what_its_list_names(tmp_path):
    write_checkpoint(tmp_path, {"other": np.zeros(1, np.float32)}, step=1)
    write_checkpoint(tmp_path, GOOD, step=2)
    text = (tmp_path / "checkpoint").read_text()
    assert f'model_checkpoint_path: "{tmp_path}/model.ckpt-2"' in text
    assert tf_checkpoint.is_checkpoint(tmp_path)
    assert_good(read_all(tmp_path))
    # As it is written with relative names, or was on another machine.
    for folder in ("", "/home/someone/run/", "C:\\run\\"):
        (tmp_path / "checkpoint").write_text(text.replace(f"{tmp_path}/", folder))
        assert_good(read_all(tmp_path))
    (tmp_path / "checkpoint").unlink()
    assert refusal(tmp_path) == (
        "the folder holds several checkpoints (model.ckpt-1, model.ckpt-2); name the one that is meant"
    )
    (tmp_path / "model.ckpt-1.index").unlink()
    assert tf_checkpoint.is_checkpoint(tmp_path)
    assert_good(read_all(tmp_path))


@pytest.mark.parametrize(
    "text",
    ["", "no list", 'model_checkpoint_path: ""', 'model_checkpoint_path: "a/.."', "model_checkpoint_path: x"],
)
def test_list_that_names_nothing(tmp_path, text):
    (tmp_path / "checkpoint").write_text(text)
    assert refusal(tmp_path) == "its file checkpoint names no checkpoint"


def test_list_that_is_no_text(tmp_path):
    (tmp_path / "checkpoint").write_bytes(b"\xff\xfe")
    assert refusal(tmp_path) == "checkpoint is not UTF-8 (byte 0xFF at 0)"


def test_list_that_names_what_is_not_there(tmp_path):
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-9"\n')
    assert refusal(tmp_path) == "there is neither model.ckpt-9.index nor model.ckpt-9"


def test_what_is_no_checkpoint(tmp_path):
    assert not tf_checkpoint.is_checkpoint(tmp_path) and not tf_checkpoint.is_checkpoint(tmp_path / "model.ckpt")
    assert refusal(tmp_path) == "the folder holds no checkpoint"
    assert refusal(tmp_path / "model.ckpt") == "there is neither model.ckpt.index nor model.ckpt"
    (tmp_path / "model.ckpt").write_bytes(b"PK\3\4" * 99)
    assert not tf_checkpoint.is_checkpoint(tmp_path / "model.ckpt")
    assert refusal(tmp_path / "model.ckpt") == "not a TensorFlow checkpoint, or cut"


def test_parts_that_are_missing(tmp_path):
    prefix = write_checkpoint(tmp_path, GOOD, sharded=True)
    data = prefix.with_name("model.ckpt.data-00000-of-00001")
    assert_good(read_all(prefix))
    moved = data.rename(prefix.with_name("model.ckpt.data-00001-of-00003"))
    assert refusal(prefix) == "model.ckpt.data-00000-of-00003 is missing"
    shutil.copy(moved, prefix.with_name("model.ckpt.data-00000-of-00003"))
    assert refusal(prefix) == "model.ckpt.data-00002-of-00003 is missing"
    prefix.with_name("model.ckpt.data-00000-of-00003").unlink()
    moved.unlink()
    assert refusal(prefix) == "model.ckpt.data-00000-of-00001 is missing"


@pytest.mark.parametrize("version", VERSIONS)
def test_files_that_are_cut(tmp_path, version):
    prefix = write_checkpoint(tmp_path, GOOD, version)
    for part in (
        [prefix] if version == V1 else [path for path in tmp_path.glob("model.ckpt.*") if path.suffix != ".meta"]
    ):
        whole = part.read_bytes()
        for length in (0, len(whole) // 2, len(whole) - 1):
            part.write_bytes(whole[:length])
            line = refusal(prefix)
            told = "cannot read the checkpoint" if ".data" in part.name else "not a TensorFlow checkpoint, or cut"
            assert line.startswith(told) and str(tmp_path) not in line, (part, length)
        part.write_bytes(whole)
    assert_good(read_all(prefix))


def test_array_larger_than_its_file(tmp_path, monkeypatch):
    prefix = write_checkpoint(tmp_path, GOOD)
    monkeypatch.setattr(tf_checkpoint, "_check_parts", lambda prefix: 5)
    assert refusal(prefix) == "net/weights is larger than the checkpoint"


def test_number_too_large_is_left_to_the_caller(tmp_path):
    prefix = write_checkpoint(tmp_path, {"a": np.array([1e300, 1])})
    assert read_all(prefix)["a"].tolist() == [np.inf, 1]
