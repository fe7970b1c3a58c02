"""Records read back: the round trip, and every way in which a set can be damaged or foreign."""

import gzip
import json
import shutil

import google_crc32c
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from ssd_tf.errors import ConfigError, DataError
from ssd_tf.records import damage, encoding, reader, schema, writer
from ssd_tf.structures import Example, LabelMap

LABELS = LabelMap(("cat", "dog"), (17, 18))


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    made = []
    for index in range(7):
        path = folder / f"{index}.png"
        Image.new("RGB", (50, 30), (index * 30, 0, 0)).save(path)
        boxes = np.array([[3, 5, 21, 30], [6.5, 10, 30, 50]])[: index % 3]
        flags = {name: [index == at] for name, at in (("difficult", 1), ("crowd", 2), ("truncated", 4))}
        flags = {name: flag[: len(boxes)] for name, flag in flags.items()}
        names = ("dog", "cat")[: len(boxes)]
        made.append(Example(f"id {index}ü", str(path), boxes, names, area=np.arange(len(boxes)) + 0.5, **flags))
    return made


def convert(examples, output, labels=LABELS):
    output.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "_SHARD_BYTES", 300)
        writer.write_records(examples, labels, output, encoding.WriteOptions(workers=1))
    return output


@pytest.fixture(scope="module")
def pristine(examples, tmp_path_factory):
    return convert(examples, tmp_path_factory.mktemp("records") / "set")


@pytest.fixture
def folder(pristine, tmp_path):
    """A copy that may be damaged."""
    return shutil.copytree(pristine, tmp_path / "set")


def shards(folder):
    found = sorted(folder.glob("*.tfrecord"))
    assert len(found) >= 3
    return found


def check_same(one, other):
    assert (one.source_id, one.names, one.unit, one.size) == (other.source_id, other.names, "pixel", (30, 50))
    np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-5)
    for name in ("difficult", "crowd", "truncated", "area"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_round_trip(pristine, examples):
    records = reader.open_records(pristine)
    assert (records.num_examples, records.label_map) == (7, LABELS)
    assert records.files == tuple(str(path) for path in shards(pristine))
    found = reader.read_examples(records)
    assert len(found) == 7
    for one, other in zip(found, examples, strict=True):
        check_same(one, other)


def test_parse_gives_the_stored_tensors(pristine, examples):
    records = reader.open_records(pristine)
    rows = list(map(schema.parse, tf.data.TFRecordDataset(list(records.files))))
    row = rows[2]
    with open(examples[2].image, "rb") as file:
        assert row["image"].numpy() == file.read()
    assert row["source_id"].numpy().decode() == "id 2ü"
    assert (int(row["height"]), int(row["width"])) == (30, 50)
    np.testing.assert_allclose(row["boxes"], [[0.1, 0.1, 0.7, 0.6], [6.5 / 30, 0.2, 1, 1]], atol=1e-6)
    assert (row["classes"].numpy().tolist(), row["classes"].dtype) == ([2, 1], tf.int32)
    assert row["crowd"].numpy().tolist() == [True, False]
    assert row["difficult"].numpy().tolist() == [False, False]
    assert rows[0]["boxes"].shape == (0, 4)


def test_several_sets_follow_each_other(pristine, examples, tmp_path):
    other = convert(examples[:3], tmp_path / "other")
    records = reader.open_records(f"{other},{pristine}")
    assert records.num_examples == 10
    rows = map(schema.parse, tf.data.TFRecordDataset(list(records.files)))
    ids = [row["source_id"].numpy().decode() for row in rows]
    assert ids == [f"id {index}ü" for index in (0, 1, 2, *range(7))]
    with pytest.raises(DataError, match=r"^image id id 0ü stands twice in the records"):
        reader.read_examples(records)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("dog", "cat"), r"^class map differs: another has 'dog' = 1, the first set has 'dog' = 2$"),
        (("cat", "fox", "dog"), r"^class map differs: another has 'fox' = 2, the first set has no 'fox'$"),
    ],
)
def test_sets_of_different_classes_are_refused(pristine, examples, tmp_path, names, message):
    other = convert(examples, tmp_path / "other", LabelMap(names))
    with pytest.raises(DataError, match=message):
        reader.open_records(f"{pristine},{other}")


def test_sets_with_fewer_classes_are_refused(pristine, examples, tmp_path):
    other = convert(
        [example for example in examples if example.names == ("dog",)], tmp_path / "o", LabelMap(("dog",))
    )
    with pytest.raises(DataError, match=r"^class map differs: "):
        reader.open_records(f"{pristine},{other}")
    first = LabelMap(("cat", "dog", "fox"))
    other = convert(examples, tmp_path / "p", first)
    with pytest.raises(DataError, match=r"^class map differs: another has 2 classes, the first set has 3$"):
        reader.open_records(f"{other},{pristine}")


def test_a_missing_shard_is_named(folder):
    count = len(shards(folder))
    shards(folder)[1].unlink()
    with pytest.raises(DataError, match=rf"^missing shard\(s\): 1 of {count}: .*set$"):
        reader.open_records(folder)


@pytest.mark.parametrize("at_a_record", [False, True])
def test_a_truncated_shard_is_named(folder, at_a_record):
    path = shards(folder)[1]
    size = path.stat().st_size
    left = 0 if at_a_record else size - 7
    with open(path, "r+b") as file:
        file.truncate(left)
    with pytest.raises(DataError) as caught:
        reader.open_records(folder)
    expected = f"shard 1 of {len(shards(folder))} is {left:,} bytes, manifest says {size:,}: re-convert: {folder}"
    assert str(caught.value) == expected


def flip_bit(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_a_flipped_bit_is_found_when_the_shard_is_read(folder):
    flip_bit(shards(folder)[1], 40)
    records = reader.open_records(folder)  # the size is as it was
    with pytest.raises(
        DataError, match=r"^corrupted record in shard 1 at byte 12 \(crc\): .*-00001-of-.*tfrecord$"
    ):
        reader.read_examples(records)


def test_an_interrupted_conversion_is_refused(folder):
    (folder / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"^conversion was interrupted; .*--resume or delete: .*set$"):
        reader.open_records(folder)


def test_an_empty_or_missing_directory_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"^no records in .*; ssd_image_to_tf makes them$"):
        reader.open_records(tmp_path)
    with pytest.raises(DataError, match=r"^no such records directory: .*nothing$"):
        reader.open_records(tmp_path / "nothing")


@pytest.mark.parametrize("where", ["", ","])
def test_no_records_given(where):
    with pytest.raises(ConfigError, match=r"^no records given$"):
        reader.open_records(where)


def test_a_glob_that_matches_nothing_names_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        reader.open_records("voc07*")
    assert str(caught.value) == f"no file matches 'voc07*' (working directory {tmp_path})"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 99}, r"made by ssd_tf .*; convert again$"),
        ({"shards": None}, r"manifest\.json: not a manifest of records$"),
        ({"shards": [{"file": "x"}]}, r"manifest\.json: not a manifest of records$"),
        ({"shards": [{"file": "../../x", "bytes": 1, "examples": 1}]}, r"^refused: path leaves the dataset root"),
    ],
)
def test_a_strange_manifest_is_refused(folder, change, message):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | change))
    with pytest.raises(DataError, match=message):
        reader.open_records(folder)


@pytest.mark.parametrize("name", ["manifest.json", "label_map.json"])
@pytest.mark.parametrize("text", ["{", "[1, 2]", ""])
def test_broken_json_is_refused(folder, name, text):
    (folder / name).write_text(text)
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        reader.open_records(folder)


# --- shards of other tools ------------------------------------------------------------------------


def foreign(path, *rows):
    """Writes records of {key: values}, as other tools do: no manifest, fewer keys."""
    with tf.io.TFRecordWriter(str(path)) as file:
        for row in rows:
            feature = {}
            for key, values in row.items():
                kind = LIST_OF[type(values[0])] if values else schema.kinds()[key]
                feature[key] = tf.train.Feature(**{kind: getattr(tf.train, LIST_TYPES[kind])(value=values)})
            file.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())
    return path


LIST_OF = {bytes: "bytes_list", int: "int64_list", float: "float_list"}
LIST_TYPES = {"bytes_list": "BytesList", "int64_list": "Int64List", "float_list": "FloatList"}


PICTURE = tf.io.encode_png(np.zeros([40, 80, 3], np.uint8)).numpy()


def row(labels=(1,), texts=(b"bird",), **changes):
    corners = {f"image/object/bbox/{name}": [0.25] * len(labels) for name in ("ymin", "xmin")}
    corners |= {f"image/object/bbox/{name}": [0.75] * len(labels) for name in ("ymax", "xmax")}
    base = {"image/encoded": [PICTURE], "image/height": [40], "image/width": [80], **corners}
    base |= {"image/object/class/label": list(labels), "image/object/class/text": list(texts)}
    return {key: value for key, value in (base | changes).items() if value is not None}


def test_foreign_shards_are_scanned(tmp_path):
    foreign(tmp_path / "a-0", row((3, 1), (b"fish", b"bird")), row((), ()))
    foreign(tmp_path / "a-1", row((1,), (b"bird",), **{"image/source_id": [b"9"], "image/object/group_of": [1]}))
    records = reader.open_records(tmp_path / "a-*")
    assert (records.num_examples, records.label_map.names) == (3, ("bird", "class 2", "fish"))
    assert records.files == (str(tmp_path / "a-0"), str(tmp_path / "a-1"))
    found = reader.read_examples(records)
    assert [example.names for example in found] == [("fish", "bird"), (), ("bird",)]
    np.testing.assert_array_equal(found[0].boxes, [[10, 20, 30, 60]] * 2)
    assert found[2].source_id == "9" and found[2].crowd.tolist() == [True]  # a group is no single object
    assert found[0].difficult.tolist() == [False, False] and found[0].area is None


def test_a_single_foreign_file_is_enough(tmp_path):
    assert reader.open_records(foreign(tmp_path / "train.record", row())).num_examples == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image/height": None}, "record 1 of shard 0: no image/height"),
        ({"image/encoded": None}, "record 1 of shard 0: no image/encoded"),
        (
            {"image/object/bbox/xmax": [0.5, 0.6]},
            "record 1 of shard 0: image/object/bbox/xmin has 1 values, xmax 2",
        ),
        (
            {"image/object/class/label": [1, 2]},
            "record 1 of shard 0: image/object/bbox/xmin has 1 values, label 2",
        ),
        ({"image/height": [40.0]}, "record 1 of shard 0: image/height is a float_list, expected a int64_list"),
        ({"image/object/class/label": [0]}, "record 1 of shard 0: class id 0, ids start at 1"),
    ],
)
def test_foreign_records_with_faults_are_named(tmp_path, changes, message):
    path = foreign(tmp_path / "a.record", row(), row(**changes))
    with pytest.raises(DataError) as caught:
        reader.open_records(path)
    assert str(caught.value) == f"{message}: {path}"


def test_foreign_records_without_objects_are_refused(tmp_path):
    path = foreign(tmp_path / "a.record", row((), ()), row((), ()))
    with pytest.raises(DataError, match=r"^no objects in 2 records: .*a\.record$"):
        reader.open_records(path)


def test_gzip_and_other_files_are_no_records(tmp_path):
    plain = foreign(tmp_path / "plain", row())
    packed = tmp_path / "packed"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    with pytest.raises(DataError, match=r"^not a TFRecord \(starts with 1f 8b: gzip\): .*packed$"):
        reader.open_records(packed)
    text = tmp_path / "text"
    text.write_text("a,b,c\n" * 20)
    with pytest.raises(DataError, match=r"^not a TFRecord \(starts with 61 2c\): .*text$"):
        reader.open_records(text)


def test_a_flipped_bit_in_foreign_shards_is_found_by_the_scan(tmp_path):
    foreign(tmp_path / "a-0", row(), row())
    flip_bit(foreign(tmp_path / "a-1", row(), row()), 30)
    with pytest.raises(DataError, match=r"^corrupted record in shard 1 at byte 12 \(crc\): .*a-1$"):
        reader.open_records(tmp_path / "a-*")


@pytest.mark.parametrize("size", [(375, 500), (333, 997), (4000, 3000)])
def test_annotated_pixels_come_back_exactly(tmp_path, size):
    """Whole pixels (VOC) and two decimals (COCO) survive float32; an IoU of exactly .5 stays one."""
    height, width = size
    Image.new("L", (width, height)).save(tmp_path / "a.png")
    random = np.random.default_rng(0)
    corners = np.floor(random.uniform(0, 0.5, (200, 2)) * size)
    boxes = np.concatenate([corners, corners + np.floor(random.uniform(1, 0.4 * min(size), (200, 2)))], axis=1)
    boxes[100:] = np.round(boxes[100:] + random.uniform(0, 1, (100, 4)) * [1, 1, 0, 0], 2)
    example = Example("a", str(tmp_path / "a.png"), boxes, ("cat",) * 200)
    found = reader.read_examples(reader.open_records(convert([example], tmp_path / "set")))[0]
    np.testing.assert_array_equal(found.boxes, boxes)


def test_records_without_ids_are_numbered(folder, tmp_path):
    path = tmp_path / "foreign.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as out:
        for record in tf.data.TFRecordDataset([str(shard) for shard in shards(folder)]):
            example = tf.train.Example.FromString(record.numpy())
            del example.features.feature["image/source_id"]
            out.write(example.SerializeToString())
    found = reader.read_examples(reader.open_records(path))
    assert [example.source_id for example in found] == [str(number) for number in range(7)]


def test_foreign_bytes_are_named(tmp_path):
    path = tmp_path / "a.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as out:
        out.write(b"\xff no example")
    with pytest.raises(DataError, match=r"^record 0 of shard 0: not a tf\.train\.Example: .*a\.tfrecord$"):
        reader.open_records(path)


def test_records_that_only_protobuf_can_parse_are_named(tmp_path):
    path = foreign(tmp_path / "a.record", row())
    good = next(damage.read_shard(path, 0))
    with tf.io.TFRecordWriter(str(path)) as out:
        out.write(good)
        out.write(good + b"\x0a\x02\x18\x01")  # a field that nobody knows, and a message that is no text
    records = reader.open_records(path)
    with pytest.raises(DataError) as caught:
        reader.read_examples(records)
    expected = f"record 1 of shard 0: TensorFlow cannot parse it as a tf.train.Example: {path}"
    assert str(caught.value) == expected


def test_a_record_that_claims_a_terabyte_is_refused(tmp_path):
    path = foreign(tmp_path / "a.record", row())
    length = (1 << 40).to_bytes(8, "little")
    value = google_crc32c.value(length)
    masked = ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF
    size = path.stat().st_size
    with open(path, "ab") as file:
        file.write(length + masked.to_bytes(4, "little") + b"abc")
    with pytest.raises(DataError, match=rf"^truncated record in shard 0 at byte {size}: .*a\.record$"):
        reader.open_records(path)
