"""Examples to records: what is stored, that it is always the same, and what a failure leaves behind."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from ssd_tf.errors import DataError
from ssd_tf.records import reader, writer
from ssd_tf.structures import Example, LabelMap, Problem

LABELS = LabelMap(("cat", "dog"), (17, 18))

# The names that other tools read; "view" and "group_of" are theirs.
KEYS = {
    "image/encoded": "bytes_list",
    "image/format": "bytes_list",
    "image/filename": "bytes_list",
    "image/source_id": "bytes_list",
    "image/key/sha256": "bytes_list",
    "image/height": "int64_list",
    "image/width": "int64_list",
    "image/object/bbox/ymin": "float_list",
    "image/object/bbox/xmin": "float_list",
    "image/object/bbox/ymax": "float_list",
    "image/object/bbox/xmax": "float_list",
    "image/object/class/text": "bytes_list",
    "image/object/class/label": "int64_list",
    "image/object/area": "float_list",
    "image/object/is_crowd": "int64_list",
    "image/object/difficult": "int64_list",
    "image/object/truncated": "int64_list",
}


def draw_image(path, seed, size=(30, 50)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


@pytest.fixture
def examples(tmp_path):
    """Six images with 0 to 2 boxes."""
    folder = tmp_path / "images"
    folder.mkdir()
    made = []
    for index in range(6):
        path = draw_image(folder / f"image {index}.{'jpg' if index % 2 else 'png'}", index)
        boxes = np.array([[3, 5, 21, 30], [6, 10, 30, 50]])[: index % 3]
        made.append(Example(f"id-{index}", path, boxes, ("dog", "cat")[: index % 3], size=(30, 50)))
    return made


def convert(examples, output, labels=LABELS, problems=(), about=None, progress=None, **options):
    output.mkdir(parents=True, exist_ok=True)
    chosen = writer.WriteOptions(**{"workers": 1, **options})
    return writer.write_records(examples, labels, output, chosen, problems, about, progress)


def features(folder):
    """The records of a folder as {key: list of values}, in order."""
    found = []
    for path in sorted(folder.glob("*.tfrecord")):
        for data in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            feature = tf.train.Example.FromString(data).features.feature
            found.append(
                {key: list(getattr(value, value.WhichOneof("kind")).value) for key, value in feature.items()}
            )
    return found


def check_nothing_looks_finished(output):
    names = {path.name for path in output.iterdir()}
    assert names <= {"convert_report.json"}
    with pytest.raises(DataError):
        reader.open_records(output)


def test_keys_and_types_are_those_of_the_detection_api(examples, tmp_path):
    output = tmp_path / "set"
    convert(examples, output)
    data = next(
        iter(tf.data.TFRecordDataset([str(p) for p in output.glob("*.tfrecord")]).skip(2).as_numpy_iterator())
    )
    feature = tf.train.Example.FromString(data).features.feature
    assert {key: value.WhichOneof("kind") for key, value in feature.items()} == KEYS


def test_stored_values(tmp_path):
    path = draw_image(tmp_path / "ä 1.png", 1, (40, 80))
    example = Example(
        "000017",
        path,
        np.array([[4, 8, 20, 40], [0, 0, 40, 80], [10, 16, 30, 24]]),
        ("dog", "cat", "dog"),
        difficult=[True],
        crowd=[False, True],
        truncated=[False, False, True],
        area=np.array([100.5, np.nan, 7.0]),
    )
    convert([example], tmp_path / "set")
    (row,) = features(tmp_path / "set")
    data = (tmp_path / "ä 1.png").read_bytes()
    assert row["image/encoded"] == [data]
    assert row["image/format"] == [b"png"]
    assert row["image/filename"] == ["ä 1.png".encode()]
    assert row["image/source_id"] == [b"000017"]
    assert row["image/key/sha256"] == [hashlib.sha256(data).hexdigest().encode()]
    assert (row["image/height"], row["image/width"]) == ([40], [80])
    corners = [row[f"image/object/bbox/{name}"] for name in ("ymin", "xmin", "ymax", "xmax")]
    np.testing.assert_allclose(
        np.transpose(corners), [[0.1, 0.1, 0.5, 0.5], [0, 0, 1, 1], [0.25, 0.2, 0.75, 0.3]], atol=1e-6
    )
    assert row["image/object/class/label"] == [2, 1, 2]
    assert row["image/object/class/text"] == [b"dog", b"cat", b"dog"]
    assert row["image/object/area"] == [100.5, 3200.0, 7.0]  # where it is not known, the box's
    assert row["image/object/difficult"] == [1, 0, 0]
    assert row["image/object/is_crowd"] == [0, 1, 0]
    assert row["image/object/truncated"] == [0, 0, 1]


def test_areas_of_normalised_boxes_are_in_pixels(tmp_path):
    path = draw_image(tmp_path / "a.png", 1, (40, 80))
    example = Example("1", path, np.array([[0.1, 0.1, 0.5, 0.5]]), ("dog",), unit="normalised")
    convert([example], tmp_path / "set")
    np.testing.assert_allclose(features(tmp_path / "set")[0]["image/object/area"], [16 * 32], rtol=1e-6)


def test_the_manifest_tells_what_was_written(examples, tmp_path):
    output = tmp_path / "set"
    manifest, report = convert(examples, output, about={"format": "test"})
    assert json.loads((output / "manifest.json").read_text()) == json.loads(json.dumps(manifest))
    (path,) = output.glob("*.tfrecord")
    assert path.name == "set-00000-of-00001.tfrecord"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    expected = {"file": path.name, "examples": 6, "bytes": path.stat().st_size, "sha256": digest}
    assert manifest["shards"] == [expected]
    assert (manifest["format_version"], manifest["name"], manifest["about"]) == (1, "set", {"format": "test"})
    assert (manifest["examples"], manifest["boxes"]) == (6, {"cat": 2, "dog": 4})
    assert manifest["made_by"].startswith("ssd_tf ")
    assert json.loads((output / "label_map.json").read_text()) == {
        "classes": [{"id": 1, "name": "cat", "source_id": 17}, {"id": 2, "name": "dog", "source_id": 18}]
    }
    assert json.loads((output / "convert_report.json").read_text()) == report.to_json()
    assert report.num_negatives == 2
    assert not [entry for entry in output.iterdir() if entry.name.startswith(".")]


def contents(folder):
    kept = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "manifest.json"}
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest.pop("made_at")
    return kept, manifest


def test_two_conversions_give_the_same_bytes_with_any_number_of_workers(examples, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "_SHARD_BYTES", 6000)
    monkeypatch.setattr(writer, "_AHEAD", 3)
    folders = [tmp_path / str(index) / "set" for index in range(3)]
    for folder, workers in zip(folders, (1, 1, 4), strict=True):
        convert(examples, folder, workers=workers)
    first, again, parallel = map(contents, folders)
    assert len(first[0]) > 4  # several shards
    assert first == again == parallel


def test_shards_are_contiguous_and_depend_on_the_bytes_alone(examples, tmp_path, monkeypatch):
    total = sum(len(open_bytes(example.image)) for example in examples)
    monkeypatch.setattr(writer, "_SHARD_BYTES", total // 4 + 1)
    manifest, _ = convert(examples, tmp_path / "set")
    assert [shard["file"] for shard in manifest["shards"]] == [f"set-0000{i}-of-00004.tfrecord" for i in range(4)]
    assert [shard["examples"] for shard in manifest["shards"]] == [1, 2, 1, 2]
    assert [row["image/source_id"] for row in features(tmp_path / "set")] == [
        [f"id-{i}".encode()] for i in range(6)
    ]
    monkeypatch.setattr(writer, "_SHARD_BYTES", 1)
    manifest, _ = convert(examples, tmp_path / "many")
    assert len(manifest["shards"]) == 6  # never more than examples


def open_bytes(path):
    with open(path, "rb") as file:
        return file.read()


def test_boxes_clipped_and_dropped_are_named(tmp_path):
    path = draw_image(tmp_path / "a.png", 1)
    boxes = np.array([[-9, 0, 20, 20], [40, 60, 50, 70], [1, 1, 9, 9]])
    example = Example(
        "1", path, boxes, ("dog", "cat", "cat"), dropped=("box of a reader",), area=np.array([1.0, 2, 3])
    )
    manifest, report = convert([example], tmp_path / "set")
    assert report.clipped == [f"box clipped to the image: object 1 'dog' 0 -9 20 20: {path}"]
    assert report.dropped == ["box of a reader", f"box outside the image: object 2 'cat' 60 40 70 50: {path}"]
    assert manifest["boxes"] == {"cat": 1, "dog": 1}
    (row,) = features(tmp_path / "set")
    assert row["image/object/class/label"] == [2, 1]
    assert row["image/object/area"] == [1, 3]


def test_changed_images_and_duplicates_are_named(tmp_path):
    path = draw_image(tmp_path / "a.bmp", 1)
    box = {"boxes": np.array([[1, 1, 9, 9]]), "names": ("dog",)}
    _, report = convert([Example("1", path, **box), Example("2", path, **box)], tmp_path / "set")
    assert report.converted == [f"bmp encoded as png: {path}"] * 2
    assert report.duplicates == ["same image bytes under two ids: 1 and 2"]
    assert features(tmp_path / "set")[0]["image/format"] == [b"png"]


def test_progress_counts_every_example(examples, tmp_path):
    calls = []
    convert(examples, tmp_path / "set", progress=lambda *call: calls.append(call))
    assert calls == [(done, 6) for done in range(1, 7)]


def break_image(example):
    with open(example.image, "r+b") as file:
        file.truncate(100)


def test_a_bad_image_fails_the_conversion(examples, tmp_path):
    break_image(examples[3])
    output = tmp_path / "set"
    with pytest.raises(DataError) as caught:
        convert(examples, output)
    assert str(caught.value).startswith("bad image: ") and str(caught.value).endswith(examples[3].image)
    check_nothing_looks_finished(output)
    report = json.loads((output / "convert_report.json").read_text())
    assert [problem["source"] for problem in report["skipped"]] == [examples[3].image]
    assert report["skipped"][0]["kind"] == "bad image"


def test_all_bad_images_are_counted_before_failing(examples, tmp_path):
    for index in (1, 3):
        break_image(examples[index])
    with pytest.raises(DataError, match=r"image 1\.jpg \(and 1 more\)$") as caught:
        convert(examples, tmp_path / "set")
    assert caught.value.details[0].endswith("image 3.jpg")
    assert caught.value.details[1] == "convert_report.json lists all 2; --on_error=skip leaves them out"


def test_skipping_leaves_bad_images_out_and_names_them(examples, tmp_path):
    break_image(examples[3])
    manifest, report = convert(examples, tmp_path / "set", on_error="skip", max_skipped=0.2)
    assert manifest["examples"] == 5
    assert [problem.source for problem in report.problems] == [examples[3].image]
    ids = [row["image/source_id"][0].decode() for row in features(tmp_path / "set")]
    assert ids == ["id-0", "id-1", "id-2", "id-4", "id-5"]
    assert reader.open_records(tmp_path / "set").num_examples == 5


@pytest.mark.parametrize(("allowed", "passes"), [(0.3, False), (0.34, True), (1, False), (2, True)])
def test_more_bad_images_than_allowed_are_an_error(examples, tmp_path, allowed, passes):
    for index in (1, 3):
        break_image(examples[index])
    output = tmp_path / "set"
    if passes:
        assert convert(examples, output, on_error="skip", max_skipped=allowed)[0]["examples"] == 4
        return
    with pytest.raises(DataError, match=r"^2 of 6 images cannot be used, --max_skipped allows .*image 1\.jpg"):
        convert(examples, output, on_error="skip", max_skipped=allowed)
    check_nothing_looks_finished(output)


def test_problems_of_the_annotations_count_as_skipped(examples, tmp_path):
    problem = Problem("bad annotation", "x.xml", "bad annotation: x.xml")
    with pytest.raises(DataError, match=r"^bad annotation: x\.xml$"):
        convert(examples, tmp_path / "fails", problems=[problem])
    _, report = convert(examples, tmp_path / "skips", problems=[problem], on_error="skip", max_skipped=1)
    assert report.problems == [problem]
    with pytest.raises(DataError, match=r"^1 of 7 images cannot be used"):
        convert(examples, tmp_path / "many", problems=[problem], on_error="skip", max_skipped=0.1)


def test_a_wrong_stated_size_is_a_problem(examples, tmp_path):
    rotated = [replace(examples[1], size=(50, 30)), *examples[2:]]
    with pytest.raises(DataError, match=r"^size says 30x50, image is 50x30 \(rotated\?\): .*image 1\.jpg$"):
        convert(rotated, tmp_path / "set")
    check_nothing_looks_finished(tmp_path / "set")


def test_a_missing_image_is_a_problem(examples, tmp_path):
    gone = replace(examples[1], image=str(tmp_path / "gone.jpg"))
    with pytest.raises(DataError, match=r"^no such file: .*gone\.jpg$"):
        convert([gone, *examples], tmp_path / "set")


def test_the_size_cap_is_passed_on(examples, tmp_path):
    with pytest.raises(DataError, match="exceeds --max_pixels"):
        convert(examples, tmp_path / "set", max_pixels=1000)


def test_nothing_to_write_is_an_error(examples, tmp_path):
    with pytest.raises(DataError, match=r"^no usable example \(0 of 0\)$"):
        convert([], tmp_path / "none")
    check_nothing_looks_finished(tmp_path / "none")
    break_image(examples[1])
    with pytest.raises(DataError, match=r"^no usable example \(0 of 1\)$"):
        convert(examples[1:2], tmp_path / "skipped", on_error="skip", max_skipped=1)
    check_nothing_looks_finished(tmp_path / "skipped")


def test_a_data_set_without_objects_is_an_error(examples, tmp_path):
    with pytest.raises(DataError, match=r"^no objects in any of the 2 images$"):
        convert([examples[0], examples[3]], tmp_path / "set")
    check_nothing_looks_finished(tmp_path / "set")


@pytest.mark.parametrize("fault", [KeyboardInterrupt, OSError])
def test_an_interruption_leaves_no_shard(examples, tmp_path, monkeypatch, fault):
    monkeypatch.setattr(writer, "_SHARD_BYTES", 1)

    def stop(done, total):
        if done == 4:
            raise fault

    with pytest.raises(fault):
        convert(examples, tmp_path / "set", progress=stop)
    check_nothing_looks_finished(tmp_path / "set")


def test_exif_modes_reach_the_images(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a.jpg"
    Image.new("RGB", (50, 30)).save(path, exif=exif)
    example = Example("1", str(path), np.array([[0, 0, 10, 10]]), ("dog",))
    convert([example], tmp_path / "apply")
    assert features(tmp_path / "apply")[0]["image/height"] == [50]
    convert([example], tmp_path / "ignore", exif="ignore")
    assert features(tmp_path / "ignore")[0]["image/height"] == [30]
    with pytest.raises(DataError, match="EXIF orientation 6"):
        convert([example], tmp_path / "error", exif="error")
