"""Records that cannot be read as they stand: rows 47 to 55 and 60 of the table of bad inputs, by number."""

import gzip
import hashlib
import json
import os
import shutil
import struct
import zlib
from pathlib import Path

import fuzzing
import numpy as np
import pytest
import tensorflow as tf
from fault_helpers import fault, succeed

from ssd_tf import config as configs
from ssd_tf import runs
from ssd_tf.boxes import anchors
from ssd_tf.data import pipeline
from ssd_tf.errors import ConfigError, DataError, EnvironmentFault
from ssd_tf.records import reader, schema
from ssd_tf.structures import LabelMap
from ssd_tf.training import checkpoint

LABELS = LabelMap(("cat", "dog"))
NUM_SHARDS, NUM_RECORDS = 10, 3  # records of each shard
TINY = ("--set=model.backbone=tiny_ssd", "--set=model.weights=none", "--set=model.image_size=96")
TRAIN = (*TINY, "--config=tiny.toml", "--run_dir=run")
RECIPE = "[train]\nsteps = 4\nbatch_size = 4\nlog_steps = 1\ncheckpoint_steps = 2\nfreeze_batch_norm = false\n"
ANCHORS = anchors.make_anchors(anchors.default_spec(2), [(4, 4), (2, 2)], (32, 32))
CONFIG = configs.replace(configs.Config(), train__batch_size=1, data__shuffle_buffer=4, model__image_size=(32, 32))
CURE = "convert again (or ssd-train --skip_corrupt_records)"


def shard(folder, index):
    return Path(folder) / f"{folder}-{index:05d}-of-{NUM_SHARDS:05d}.tfrecord"


def make_record(index, labels=(1, 2), **changes):
    return fuzzing.make_example(labels, **{schema.SOURCE_ID: [b"image %d" % index], **changes})


def write_records(folder, rows, labels=LABELS):
    """Writes a records directory as the converter does; `rows` holds the records of each shard."""
    Path(folder).mkdir(exist_ok=True)
    shards = []
    for index, records in enumerate(rows):
        data = b"".join(map(fuzzing.frame, records))
        shard(folder, index).write_bytes(data)
        entry = {"file": shard(folder, index).name, "examples": len(records), "bytes": len(data)}
        shards.append({**entry, "sha256": hashlib.sha256(data).hexdigest()})
    (Path(folder) / "label_map.json").write_text(json.dumps(labels.to_json()))
    manifest = {"format_version": 1, "made_by": "ssd_tf", "shards": shards}
    (Path(folder) / "manifest.json").write_text(json.dumps(manifest))


def plain_rows():
    return [[make_record(NUM_RECORDS * i + j) for j in range(NUM_RECORDS)] for i in range(NUM_SHARDS)]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The working directory, with a recipe and an empty results file in it."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text(RECIPE)
    Path("none.json").write_text("[]")
    return tmp_path


@pytest.fixture
def records():
    """Ten shards of three records."""
    write_records("rec", plain_rows())
    return Path("rec")


def all_say(message, data="rec", code=3):
    """Every command that reads records stops at its start, with one line, and leaves nothing behind."""
    assert fault("train", f"--train={data}", *TRAIN, code=code) == message
    assert fault("test", "--detections=none.json", f"--data={data}", code=code) == message
    assert not Path("run").exists()


def change(path, at, value=None):
    data = bytearray(path.read_bytes())
    data[at] = data[at] ^ 1 if value is None else value
    path.write_bytes(data)


def truncate(path, size):
    with open(path, "r+b") as file:
        file.truncate(size)


# --- before anything is read ----------------------------------------------------------------------


def test_row_47_shard_cut_inside_a_record(records):
    size = shard("rec", 3).stat().st_size
    truncate(shard("rec", 3), size - 100)
    all_say(f"shard 3 of 10 is {size - 100:,} bytes, manifest says {size:,}: re-convert: rec")
    succeed("test", "--detections=none.json", f"--data={rebuilt('rec')}")


def rebuilt(folder):
    write_records(folder, plain_rows())
    return folder


def test_row_47_foreign_shard_cut_inside_a_record(records):
    first = len(fuzzing.frame(plain_rows()[3][0]))
    truncate(shard("rec", 3), first + 100)
    (records / "manifest.json").unlink()
    path = shard("rec", 3)
    all_say(f"truncated record in shard 3 at byte {first}: {CURE}: {path}", data="rec/*.tfrecord")
    truncate(path, first + 5)  # not even the length of the next record
    all_say(f"truncated record in shard 3 at byte {first}: {CURE}: {path}", data="rec/*.tfrecord")


def test_row_48_shard_cut_at_a_border_between_records(records):
    size, first = shard("rec", 3).stat().st_size, len(fuzzing.frame(plain_rows()[3][0]))
    truncate(shard("rec", 3), first)
    all_say(f"shard 3 of 10 is {first:,} bytes, manifest says {size:,}: re-convert: rec")


def test_row_50_shards_that_are_missing_empty_or_too_many(records):
    shutil.copytree("rec", "few")
    for index in (4, 7):
        Path("few", shard("rec", index).name).unlink()
    all_say("missing shard(s): 4, 7 of 10: few", data="few")
    all_say("missing shard(s): 4, 7 of 10: few/*.tfrecord", data="few/*.tfrecord")
    shutil.copy(shard("rec", 0), "rec/rec-00010-of-00012.tfrecord")
    shutil.copy(shard("rec", 0), "rec/rec-00011-of-00012.tfrecord")
    all_say("shards of several conversions (10 of 10 and 2 of 12): rec in rec")
    for name in ("rec-00010", "rec-00011"):
        os.rename(f"rec/{name}-of-00012.tfrecord", f"rec/{name}-of-00010.tfrecord")
    all_say("shard 11 of 10 cannot be: rec")
    shutil.copytree("few", "empty")
    for index in (4, 7):
        Path("empty", shard("rec", index).name).touch()
    all_say(f"shard 4 is empty: empty/{shard('rec', 4).name}", data="empty/*.tfrecord")


def test_row_51_files_that_are_no_tfrecord(records):
    Path("packed").write_bytes(gzip.compress(shard("rec", 0).read_bytes()))
    Path("table.csv").write_text("a,b,c\n" * 20)
    all_say("not a TFRecord (starts with 1f 8b: gzip): packed", data="packed")
    all_say("not a TFRecord (starts with 61 2c): table.csv", data="table.csv")


def test_row_52_glob_that_matches_nothing():
    message = f"no file matches 'tfrecords/voc07*' (working directory {os.getcwd()})"
    all_say(message, data="tfrecords/voc07*", code=2)


def test_row_53_foreign_shards_are_counted_checked_and_mentioned(records):
    (records / "manifest.json").unlink()
    note = "no manifest: 30 records with 2 classes found: rec/*.tfrecord"
    out = succeed("test", "--detections=none.json", "--data=rec/*.tfrecord").splitlines()
    assert out[0] == note
    out = succeed("train", "--train=rec/*.tfrecord", *TRAIN).splitlines()
    assert out[0] == note and "30 images, 2 classes; 4 steps of 4" in out[2]


def resized_png(width, height):
    """A small PNG whose header claims another size."""
    data = fuzzing.image_seeds()[5]
    head = data[12:16] + struct.pack(">II", width, height) + data[24:29]
    return data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:]


XMIN, XMAX, LABEL = schema.CORNERS[1], schema.CORNERS[3], schema.LABEL
BAD_RECORDS = [
    ({schema.HEIGHT: []}, "no image/height"),
    ({XMIN: [0.1, 0.2, 0.3]}, "image/object/bbox/xmin has 3 values, xmax 2"),
    ({LABEL: [1]}, "image/object/bbox/xmin has 2 values, label 1"),
    ({schema.DIFFICULT: [0, 1, 1]}, "image/object/bbox/xmin has 2 values, difficult 3"),
    ({LABEL: [0.5, 1.5]}, "image/object/class/label is a float_list, expected a int64_list"),
    ({LABEL: [0, 1]}, "class id 0, ids start at 1"),
    ({LABEL: [1, -3]}, "class id -3, ids start at 1"),
    ({XMAX: [0.9, float("nan")]}, "image/object/bbox/xmax is nan, expected 0..1"),
    ({schema.WIDTH: [20, 20]}, "image/width has 2 values, expected 1"),
]


BAD_PICTURES = [
    ({schema.HEIGHT: [10**6], schema.WIDTH: [10**6]}, "an image of 1000000x1000000 pixels cannot be"),
    ({schema.HEIGHT: [13]}, "the image is 20x14 pixels, the record says 20x13"),
    ({schema.ENCODED: [resized_png(10**5, 10**5)]}, "bad image: 10,000 Mpx exceeds --max_pixels=64M: image 2"),
]


def bad_rows(changes):
    """Ten shards; record 2 of shard 0 is not as it should be."""
    rows = plain_rows()
    rows[0][2] = make_record(2, **changes)
    return rows


@pytest.mark.parametrize(
    ("changes", "reason"), [*BAD_RECORDS, *BAD_PICTURES, ({XMIN: [5.0, 7.0]}, f"{XMIN} is 5, expected 0..1")]
)
def test_row_54_records_that_contradict_themselves(changes, reason):
    write_records("rec", bad_rows(changes))
    Path("rec/manifest.json").unlink()
    with pytest.raises(DataError) as caught:
        reader.open_records("rec/*.tfrecord")
    assert str(caught.value) == f"record 2 of shard 0: {reason}: {shard('rec', 0)}"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        *BAD_RECORDS,
        ({LABEL: [1, 3]}, "class id 3, the highest is 2"),
        ({LABEL: [1, 2**32 + 1]}, "class id 4294967297, the highest is 2"),
    ],
)
def test_row_54_the_same_in_directories_of_ours(changes, reason):
    """Their manifest is trusted at the start; then the record itself speaks."""
    write_records("rec", bad_rows(changes))
    opened = reader.open_records("rec")
    with pytest.raises(DataError) as caught, reader.record_errors(opened):
        reader.read_examples(opened)
    assert str(caught.value) == f"record 2 of shard 0: {reason}: {shard('rec', 0)}"


@pytest.mark.parametrize("training", [False, True])
def test_row_54_labels_too_high_leave_neither_stream(training):
    write_records("rec", bad_rows({LABEL: [1, 3]}))
    opened = reader.open_records("rec")
    batches = pipeline.training_stream if training else pipeline.validation_batches
    with pytest.raises(DataError, match=r"^record 2 of shard 0: class id 3, "), reader.record_errors(opened):
        list(batches(opened, ANCHORS, CONFIG).take(30))


def test_row_54_a_label_too_high_never_trains():
    write_records("rec", bad_rows({LABEL: [3, 1]}))
    message = f"record 2 of shard 0: class id 3, the highest is 2: {shard('rec', 0)}"
    assert fault("train", "--train=rec", *TRAIN, "--set=train.steps=8", code=3) == message
    assert fault("test", "--detections=none.json", "--data=rec", code=3) == message


def make_run(names):
    """A run of a net that never learned."""
    overrides = [option.removeprefix("--set=") for option in TINY]
    config = configs.load_config("tiny.toml", [*overrides, f"model.num_classes={len(names)}"])
    run = runs.start_run("run", config, LabelMap(names), NUM_SHARDS * NUM_RECORDS)
    runs.save_checkpoint(run.path, 1, lambda place: (place / runs.WEIGHTS).write_bytes(b"x"), {}, 2)


@pytest.mark.parametrize("names", [("cat", "fox", "dog", "cow"), ("cat", "fox", "dog")])
def test_row_55_classes_that_differ_from_the_run(names, monkeypatch):
    make_run(("cat", "fox", "cow", "dog"))
    write_records("rec", plain_rows(), LabelMap(names))
    first = "'dog' = 3, run has 'dog' = 4"
    message = f"class map differs: shards have {first}"
    assert fault("train", "--train=rec", *TRAIN, code=3) == message
    monkeypatch.setattr(checkpoint, "load_weights", lambda found, model: None)
    assert fault("test", "--run_dir=run", "--data=rec", code=3) == message


# --- while reading --------------------------------------------------------------------------------


def second_content(index):
    """Where the content of a shard's second record begins."""
    return len(fuzzing.frame(plain_rows()[index][0])) + 12


def test_row_49_flipped_bit(records):
    at = second_content(3)
    change(shard("rec", 3), at + 60)
    message = f"corrupted record in shard 3 at byte {at} (crc): {CURE}: {shard('rec', 3)}"
    assert fault("test", "--detections=none.json", "--data=rec", code=3) == message
    assert fault("train", "--train=rec", *TRAIN, "--set=train.steps=20", code=3) == message
    (records / "manifest.json").unlink()
    shutil.rmtree("run")
    all_say(message, data="rec/*.tfrecord")


def test_row_49_flipped_bit_in_a_length(records):
    at = second_content(3) - 12
    change(shard("rec", 3), at + 2)
    message = f"corrupted record in shard 3 at byte {at} (crc): {CURE}: {shard('rec', 3)}"
    assert fault("test", "--detections=none.json", "--data=rec", code=3) == message


def test_row_49_skipping_loses_the_rest_of_the_shard_alone(records):
    succeed("train", "--train=rec", *TRAIN)
    at, end = second_content(3), shard("rec", 5).stat().st_size
    change(shard("rec", 3), at + 60)  # the second of three records
    change(shard("rec", 5), end - 1)  # the last of three
    argv = ("--train=rec", *TRAIN, "--set=train.steps=5", "--skip_corrupt_records", "--json")
    out = succeed("train", *argv).splitlines()
    last = len(b"".join(map(fuzzing.frame, plain_rows()[5][:2]))) + 12
    assert out[:3] == [
        f"corrupted record in shard 3 at byte {at} (crc): {CURE}: {shard('rec', 3)}",
        f"corrupted record in shard 5 at byte {last} (crc): {CURE}: {shard('rec', 5)}",
        "3 of 30 records are left out of every epoch: rec",
    ]
    assert any(line.startswith("27 images, 2 classes; ") for line in out)
    # Damage is no change of data: the run that began with 30 records goes on.
    assert (json.loads(out[-1])["resumed_from"], json.loads(out[-1])["step"]) == (4, 5)


def stream(opened, count, start=0):
    """The pixels of `count` training images; every image is another."""
    batches = pipeline.training_stream(opened, ANCHORS, CONFIG, start).take(count)
    return [image.tobytes() for image, _, _ in batches.as_numpy_iterator()]


def test_row_49_what_is_left_comes_in_an_order_of_seed_and_epoch(records):
    stored = {data.source_id for data in reader.read_examples(reader.open_records("rec"))}
    change(shard("rec", 3), second_content(3) + 60)
    opened = reader.open_records("rec", skip_corrupt=True)
    assert (opened.num_examples, opened.num_lost) == (28, 2)
    left = [example.source_id for example in reader.read_examples(opened)]
    assert stored - set(left) == {"image 10", "image 11"} and len(left) == len(set(left)) == 28
    whole = stream(opened, 60)
    assert stream(reader.open_records("rec", skip_corrupt=True), 40, start=20) == whole[20:]


def test_row_49_skipping_where_nothing_is_wrong_changes_nothing(records):
    one, other = (reader.open_records("rec", skip) for skip in (False, True))
    assert (other.num_examples, other.num_lost, other.notes) == (30, 0, ())
    assert stream(one, 40) == stream(other, 40)


def test_row_49_skipping_foreign_shards(records):
    (records / "manifest.json").unlink()
    change(shard("rec", 3), second_content(3) + 60)
    truncate(shard("rec", 9), second_content(9) + 5)
    opened = reader.open_records("rec/*.tfrecord", skip_corrupt=True)
    assert opened.num_examples == 26
    assert [note.split(": ")[:2] for note in opened.notes[:2]] == [
        [
            "what follows is left out of every epoch",
            f"corrupted record in shard 3 at byte {second_content(3)} (crc)",
        ],
        [
            "what follows is left out of every epoch",
            f"truncated record in shard 9 at byte {second_content(9) - 12}",
        ],
    ]
    assert len(reader.read_examples(opened)) == 26


def test_row_49_nothing_left_to_skip_to(records):
    for index in range(NUM_SHARDS):
        change(shard("rec", index), 0)
    with pytest.raises(DataError, match=r"^no record can be read: rec$"):
        reader.open_records("rec", skip_corrupt=True)


CUT_JPEG = fuzzing.image_seeds()[0][:-40]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {schema.ENCODED: [CUT_JPEG]},
            "record 1 of shard 6 (image 19): the image cannot be decoded: ",
        ),
        (
            {schema.ENCODED: [b"\xff\xd8 no picture"]},
            "record 1 of shard 6: bad image: not an image (starts with '?? no pic'): image 19",
        ),
        (
            {schema.HEIGHT: [15]},
            "record 1 of shard 6: the image is 20x14 pixels, the record says 20x15",
        ),
    ],
)
def test_image_that_cannot_be_decoded_is_named(changes, reason):
    rows = plain_rows()
    rows[6][1] = make_record(19, **changes)
    write_records("rec", rows)
    opened = reader.open_records("rec")
    whole = configs.replace(CONFIG, augment__crop_probability=0.0)  # or the window may miss what is not there
    with pytest.raises(DataError) as caught, reader.record_errors(opened):
        list(pipeline.training_stream(opened, ANCHORS, whole).take(30))
    assert str(caught.value).startswith(reason) and str(caught.value).endswith(f": {shard('rec', 6)}")


def test_image_that_cannot_be_decoded_stops_the_commands():
    rows = plain_rows()
    rows[6][1] = make_record(19, **{schema.ENCODED: [CUT_JPEG]})
    write_records("rec", rows)
    message = fault("train", "--train=rec", *TRAIN, "--set=train.steps=9", code=3)
    assert message.startswith("record 1 of shard 6 (image 19): the image cannot be decoded: ")


def break_shard_at_checkpoints(monkeypatch, damage_it):
    """Calls `damage_it` whenever a checkpoint has been saved, until the test undoes it."""
    save = checkpoint.save

    def save_and_break(*args, **options):
        save(*args, **options)
        shard("rec", 3).unlink(missing_ok=True)
        damage_it()

    monkeypatch.setattr(checkpoint, "save", save_and_break)


def check_run_ends_at_a_checkpoint():
    """Every step in the log was done, and the last one saved is where the run will go on."""
    steps = [json.loads(line)["step"] for line in Path("run/log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1)) and 2 <= len(steps) < 30
    assert runs.find_checkpoint("run").state["step"] == len(steps) - len(steps) % 2


LONG = ("--train=rec", *TRAIN, "--set=train.steps=30", "--json")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that cannot be read: Linux's /proc")
def test_row_60_read_error_in_the_middle_of_an_epoch(records, monkeypatch):
    break_shard_at_checkpoints(monkeypatch, lambda: shard("rec", 3).symlink_to("/proc/self/mem"))
    message = fault("train", *LONG, code=5)
    assert message == f"cannot read shard 3: input/output error: {shard('rec', 3)}"
    check_run_ends_at_a_checkpoint()


def test_row_60_shard_that_vanishes_and_comes_back(records, monkeypatch):
    whole = json.loads(succeed("train", *LONG, "--run_dir=whole").splitlines()[-1])
    kept = shard("rec", 3).read_bytes()
    with monkeypatch.context() as patch:
        break_shard_at_checkpoints(patch, lambda: None)
        message = fault("train", *LONG, code=5)
    assert message == f"cannot read shard 3: no such file or directory: {shard('rec', 3)}"
    check_run_ends_at_a_checkpoint()
    shard("rec", 3).write_bytes(kept)
    resumed = json.loads(succeed("train", *LONG).splitlines()[-1])
    assert resumed["resumed_from"] > 0
    np.testing.assert_allclose(resumed["loss"], whole["loss"], rtol=1e-6)  # as if nothing had happened


def test_a_fault_that_passed_by_the_second_look(records):
    opened = reader.open_records("rec")
    error = tf.errors.UnknownError(None, None, f"{opened.files[4]}; Input/output error")
    with pytest.raises(EnvironmentFault) as caught, reader.record_errors(opened):
        raise error
    assert str(caught.value) == f"cannot read shard 4: a passing fault: {shard('rec', 4)}"


def test_errors_that_are_not_about_records_pass(records):
    opened = reader.open_records("rec")
    for error in (tf.errors.InvalidArgumentError(None, None, "shapes"), tf.errors.NotFoundError(None, None, "x")):
        with pytest.raises(type(error)), reader.record_errors(opened):
            raise error
    with pytest.raises(ConfigError), reader.record_errors(opened):
        raise ConfigError("x")
