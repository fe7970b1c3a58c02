"""Digests read back from records: which images they are, and records that cannot tell."""

import hashlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from ssd_tf.errors import DataError
from ssd_tf.records import encoding, overlap, writer
from ssd_tf.structures import Example, LabelMap

SHARD = "set-00000-of-00001.tfrecord"


@pytest.fixture
def written(tmp_path):
    """Three images, the last a copy of the first, and their digests."""
    examples, digests = [], []
    for index, grey in enumerate((10, 200, 10)):
        path = tmp_path / f"{index}.png"
        Image.fromarray(np.full((30, 50), grey, np.uint8)).save(path)
        digests.append(hashlib.sha256(path.read_bytes()).hexdigest())
        examples.append(Example(f"id {index} é", str(path), [[1, 2, 20, 30]], ("dog",)))
    (tmp_path / "set").mkdir()
    writer.write_records(examples, LabelMap(("dog",)), tmp_path / "set", encoding.WriteOptions(workers=1))
    return tmp_path / "set", digests


def refused(folder):
    with pytest.raises(DataError) as caught:
        overlap.read_digests(folder)
    return str(caught.value)


def test_digests_are_those_of_the_files(written):
    folder, digests = written
    assert digests[0] == digests[2]
    assert overlap.read_digests(folder) == {digests[0]: "id 0 é", digests[1]: "id 1 é"}


def test_digests_of_several_shards(written, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "_SHARD_BYTES", 100)
    examples = [
        Example(str(index), str(tmp_path / f"{index}.png"), [[1, 2, 20, 30]], ("dog",)) for index in (1, 0)
    ]
    (tmp_path / "two").mkdir()
    writer.write_records(examples, LabelMap(("dog",)), tmp_path / "two", encoding.WriteOptions(workers=1))
    assert len(list((tmp_path / "two").glob("*.tfrecord"))) == 2
    assert list(overlap.read_digests(tmp_path / "two").items()) == [(written[1][1], "1"), (written[1][0], "0")]


def test_folders_without_finished_records(written):
    folder, _ = written
    assert refused(folder / "gone") == f"no such records directory: {folder / 'gone'}"
    (folder / "manifest.json").write_text("[]")
    assert refused(folder) == f"{folder / 'manifest.json'}: not a manifest of records"
    (folder / "manifest.json").unlink()
    assert refused(folder) == f"no finished records in {folder}; ssd_image_to_tf makes them"


def test_damaged_shards(written):
    folder, _ = written
    data = (folder / SHARD).read_bytes()
    second = 12 + int.from_bytes(data[:8], "little") + 4
    third = second + 12 + int.from_bytes(data[second : second + 8], "little") + 4
    for cut, place in ((second + 5, second), (second + 12, second), (len(data) - 5, third)):
        (folder / SHARD).write_bytes(data[:cut])
        assert refused(folder) == f"corrupted record at byte {place}: {folder / SHARD}"
    (folder / SHARD).write_bytes(data[:second] + b"\xff" * 8 + data[second + 8 :])
    assert refused(folder) == f"corrupted record at byte {second}: {folder / SHARD}"
    (folder / SHARD).unlink()
    assert refused(folder) == f"cannot read: no such file or directory: {folder / SHARD}"


def test_records_that_cannot_tell(written):
    folder, _ = written
    with tf.io.TFRecordWriter(str(folder / SHARD)) as out:
        out.write(tf.train.Example().SerializeToString())
    where = f"record 0: {folder / SHARD}"
    assert refused(folder) == f"no image/key/sha256, so no overlap can be checked: {where}"
    with tf.io.TFRecordWriter(str(folder / SHARD)) as out:
        out.write(b"\xff\xff\xff")
    assert refused(folder) == f"not a tf.train.Example: {where}"
