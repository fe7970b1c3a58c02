"""Examples to records: what is stored, that it is always the same, and what a failure leaves behind."""

import hashlib
import json
import os
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from ssd_tf.errors import ConfigError, DataError, EnvironmentFault
from ssd_tf.records import encoding, holdout, overlap, reader, worker, writer
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


def convert(
    examples,
    output,
    labels=LABELS,
    problems=(),
    about=None,
    progress=None,
    resume=False,
    elsewhere=None,
    **options,
):
    output.mkdir(parents=True, exist_ok=True)
    chosen = encoding.WriteOptions(**{"workers": 1, **options})
    return writer.write_records(examples, labels, output, chosen, problems, about, progress, resume, elsewhere)


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
    assert names <= {"convert_report.json", ".incoming"}
    with pytest.raises(DataError):
        reader.open_records(output)


def test_keys_and_types_are_those_of_the_detection_api(examples, tmp_path):
    output = tmp_path / "set"
    convert(examples, output)
    data = next(
        iter(tf.data.TFRecordDataset([str(p) for p in output.glob("*.tfrecord")]).skip(2).as_numpy_iterator())
    )
    example = tf.train.Example.FromString(data)
    feature = example.features.feature
    assert {key: value.WhichOneof("kind") for key, value in feature.items()} == KEYS
    assert example.SerializeToString(deterministic=True) == data


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
    digest = hashlib.sha256()  # of the file, but each image by its own digest
    rest = path.read_bytes()
    for row in features(output):
        before, _, rest = rest.partition(row["image/encoded"][0])
        digest.update(before + hashlib.sha256(row["image/encoded"][0]).digest())
    digest.update(rest)
    expected = {"file": path.name, "examples": 6, "bytes": path.stat().st_size, "digest": digest.hexdigest()}
    assert manifest["shards"] == [expected]
    assert (manifest["format_version"], manifest["name"], manifest["about"]) == (1, "set", {"format": "test"})
    assert (manifest["examples"], manifest["boxes"]) == (6, {"cat": 2, "dog": 4})
    assert manifest["made_by"].startswith("ssd_tf ")
    assert json.loads((output / "label_map.json").read_text()) == {
        "classes": [{"id": 1, "name": "cat", "source_id": 17}, {"id": 2, "name": "dog", "source_id": 18}]
    }
    assert json.loads((output / "convert_report.json").read_text()) == report.to_json()
    assert report.num_negatives == 2
    assert [entry.name for entry in output.iterdir() if entry.name.startswith(".")] == [".inputs.json"]


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def test_two_conversions_give_the_same_bytes_with_any_number_of_workers(examples, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "_SHARD_BYTES", 6000)
    folders = [tmp_path / str(index) / "set" for index in range(3)]
    for folder, workers in zip(folders, (1, 1, 4), strict=True):
        convert(examples, folder, workers=workers)
    first, again, parallel = map(contents, folders)
    assert len(first) > 3 + 2  # several shards
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


@pytest.mark.parametrize("workers", [1, 2])
def test_progress_counts_every_example(examples, tmp_path, monkeypatch, workers):
    monkeypatch.setattr(writer, "_SHARD_BYTES", 1)
    calls = []
    convert(examples, tmp_path / "set", progress=lambda *call: calls.append(call), workers=workers)
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
    with pytest.raises(
        DataError,
        match=r"^no usable example \(0 of 1\); the first that cannot be used: bad image: .*image 1\.jpg$",
    ):
        convert(examples[1:2], tmp_path / "skipped", on_error="skip", max_skipped=1)
    check_nothing_looks_finished(tmp_path / "skipped")


def test_a_data_set_without_objects_is_an_error(examples, tmp_path):
    with pytest.raises(DataError, match=r"^no objects in any of the 2 images$"):
        convert([examples[0], examples[3]], tmp_path / "set")
    check_nothing_looks_finished(tmp_path / "set")


class Stopped(Exception):
    """Ends a conversion in its middle."""


def stop_after(number):
    def stop(done, total):
        if done >= number:
            raise Stopped

    return stop


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_conversion_goes_on_where_it_stopped(examples, tmp_path, monkeypatch, workers):
    monkeypatch.setattr(writer, "_SHARD_BYTES", 1)
    convert(examples, tmp_path / "whole" / "set")
    output = tmp_path / "set"
    with pytest.raises(Stopped):
        convert(examples, output, progress=stop_after(4), workers=workers)
    check_nothing_looks_finished(output)
    states = (output / ".incoming").glob("*.json")
    kept = {path.with_suffix(".tfrecord") for path in states}
    kept = {path.name: path.stat().st_ino for path in kept}
    assert len(kept) >= 2
    convert(examples, output, workers=3 - workers, resume=True)
    assert {name: (output / name).stat().st_ino for name in kept} == kept  # moved, not written again
    assert contents(output) == contents(tmp_path / "whole" / "set")


@pytest.mark.parametrize("change", ["image", "shard", "zeros", "length", "state", "labels", "options"])
def test_only_shards_that_still_hold_are_kept(examples, tmp_path, monkeypatch, change):
    monkeypatch.setattr(writer, "_SHARD_BYTES", 1)
    output, labels, options = tmp_path / "set", LABELS, {}
    with pytest.raises(Stopped):
        convert(examples, output, progress=stop_after(3))
    shard = output / ".incoming" / "set-00001-of-00006.tfrecord"
    if change == "image":
        draw_image(examples[1].image, 99)
    elif change == "shard":
        shard.write_bytes(b"x" + shard.read_bytes()[1:])
    elif change == "zeros":
        shard.write_bytes(bytes(shard.stat().st_size))
    elif change == "length":  # the record claims to be 2^56 bytes longer
        data = shard.read_bytes()
        shard.write_bytes(data[:7] + bytes([data[7] ^ 1]) + data[8:])
    elif change == "state":
        shard.with_suffix(".json").write_text("{")
    elif change == "labels":
        labels = LabelMap(("dog", "cat"))
    else:
        options = {"exif": "ignore"}
    convert(examples, output, labels, resume=True, **options)
    convert(examples, tmp_path / "whole" / "set", labels, **options)
    assert contents(output) == contents(tmp_path / "whole" / "set")


def test_a_conversion_killed_while_it_moves_its_shards_goes_on(examples, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "_SHARD_BYTES", 1)
    convert(examples, tmp_path / "whole" / "set")
    output, moves = tmp_path / "set", []
    replace_file = os.replace

    def stop_in_the_middle(source, target):
        if ".incoming" in str(source) and ".incoming" not in str(target):
            moves.append(target)
            if len(moves) == 4:
                raise Stopped
        replace_file(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stop_in_the_middle)
        with pytest.raises(Stopped):
            convert(examples, output)
    moved = {path.name: path.stat().st_ino for path in output.glob("*.tfrecord")}
    assert len(moved) == 3
    with pytest.raises(DataError, match=r"^conversion was interrupted"):
        reader.open_records(output)
    convert(examples, output, resume=True)
    assert {name: (output / name).stat().st_ino for name in moved} == moved
    assert contents(output) == contents(tmp_path / "whole" / "set")


def test_earlier_records_stand_until_better_ones_are_complete(examples, tmp_path):
    output = tmp_path / "set"
    convert(examples, output)
    before = contents(output)
    break_image(examples[3])
    with pytest.raises(DataError):
        convert(examples, output)
    after = contents(output)
    assert json.loads(after.pop("convert_report_failed.json"))["skipped"]
    assert after == before
    convert(examples[:3], output)
    assert reader.open_records(output).num_examples == 3


def test_a_worker_that_dies_is_one_line(examples, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "_SHARD_BYTES", 1)
    monkeypatch.setattr(worker.sys, "executable", "/bin/true")
    with pytest.raises(EnvironmentFault, match=r"^a worker process ended unexpectedly"):
        convert(examples, tmp_path / "set", workers=2)
    check_nothing_looks_finished(tmp_path / "set")


def test_a_module_in_the_working_directory_is_never_imported(examples, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "_SHARD_BYTES", 1)
    monkeypatch.chdir(tmp_path)
    for name in ("numpy", "PIL", "pickle"):
        (tmp_path / f"{name}.py").write_text("open('executed', 'w')")
    convert(examples, tmp_path / "set", workers=2)
    assert not (tmp_path / "executed").exists()


def test_full_disk_before_the_start_is_no_interrupted_conversion(examples, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(writer.fileio, "check_free_space", lambda *_: stop_after(0)(0, 0))
        with pytest.raises(Stopped):
            convert(examples, tmp_path / "set")
    writer.check_not_interrupted(tmp_path / "set", accepted=False)
    convert(examples, tmp_path / "set")


def test_space_asked_for_is_what_is_still_missing(examples, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "_SHARD_BYTES", 1)
    asked = []
    monkeypatch.setattr(writer.fileio, "check_free_space", lambda _, needed: asked.append(needed))
    output, total = tmp_path / "set", sum(len(open_bytes(example.image)) for example in examples)
    with pytest.raises(Stopped):
        convert(examples, output, progress=stop_after(4))
    staged = sum(path.stat().st_size for path in (output / ".incoming").glob("*.tfrecord"))
    convert(examples, output, resume=True)
    assert asked == [int(total * 1.02), int(total * 1.02) - staged]
    assert 0 < staged < total


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_error": "fial"}, "--on_error: 'fial' is none of fail, skip (did you mean fail?)"),
        ({"exif": "aply"}, "--exif: 'aply' is none of apply, ignore, error (did you mean apply?)"),
        ({"verify": "decoed"}, "--verify: 'decoed' is none of structure, decode (did you mean decode?)"),
        ({"max_skippd": 3}, "unknown option max_skippd (did you mean max_skipped?)"),
        ({"workers": -1}, "--workers and --max_skipped are at least 0, --max_pixels at least 1"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ConfigError) as caught:
        encoding.WriteOptions.of(options)
    assert str(caught.value) == message


def test_images_of_the_other_set_are_an_error(examples, tmp_path):
    convert(examples[:3], tmp_path / "train")
    digests = overlap.read_digests(tmp_path / "train")
    assert digests == {hashlib.sha256(open_bytes(e.image)).hexdigest(): e.source_id for e in examples[:3]}
    again = replace(examples[2], source_id="other")
    with pytest.raises(DataError, match=r"^1 image is in the other records too \(here = there\): other = id-2$"):
        convert([again, *examples[3:]], tmp_path / "test", elsewhere=digests)
    check_nothing_looks_finished(tmp_path / "test")
    convert(examples[3:], tmp_path / "test", elsewhere=digests)


@pytest.mark.parametrize(("fraction", "held_out"), [(0.01, 1), (0.2, 20), (0.5, 50), (0.999, 99)])
def test_the_images_held_out_follow_from_the_seed(fraction, held_out):
    examples = [Example(f"id-{i}", f"{i}.jpg", np.zeros([0, 4]), ()) for i in range(100)]
    train, val = holdout.hold_out(examples, fraction, 3)
    assert len(val) == held_out
    assert sorted([*train, *val], key=examples.index) == examples
    assert holdout.hold_out(examples[::-1], fraction, 3)[1] == val[::-1]
    assert holdout.hold_out(examples, fraction, 4)[1] != val
    with pytest.raises(DataError, match=r"^--val_fraction needs two images or more, found 1$"):
        holdout.hold_out(examples[:1], fraction, 3)


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


def test_progress_over_two_parts():
    calls = []
    show = writer.overall(lambda *call: calls.append(call), 10)
    for done in (3, 7):
        show(done, 7)
    for done in (2, 3):
        show(done, 3)
    assert calls == [(3, 10), (7, 10), (9, 10), (10, 10)]
