"""What a newcomer meets in the first hour: exit code, one line that names file and place, nothing half-written."""

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from fault_helpers import (
    COCO,
    CONVERT,
    coco_box,
    draw,
    fault,
    succeed,
    visible,
    voc_xml,
    write_coco,
    write_voc,
)
from PIL import Image

from ssd_tf import config as configs
from ssd_tf import runs
from ssd_tf.api import build
from ssd_tf.errors import ConfigError, DataError, EnvironmentFault
from ssd_tf.structures import LabelMap


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of a net that never learned, for the two classes."""
    path = tmp_path_factory.mktemp("trained") / "run"
    overrides = ["model.backbone=tiny_ssd", "model.weights=none", "model.image_size=96", "model.num_classes=2"]
    config = configs.load_config(None, [*overrides, "train.steps=5"])
    model = build.build(config).model
    run = runs.start_run(path, config, LabelMap(("blue", "red")), 8)
    runs.save_checkpoint(run.path, 1, lambda place: model.save_weights(place / runs.WEIGHTS), {}, 2)
    return path


@pytest.fixture
def run(folder, trained):
    """A copy of it in the working directory."""
    shutil.copytree(trained, folder / "run")
    return Path("run")


TINY = ("--set=model.backbone=tiny_ssd", "--set=model.weights=none", "--set=model.image_size=96")
TRAIN = (*TINY, "--set=train.steps=5", "--run_dir=run")


# Paths that do not exist


def test_converter_without_its_input(voc):
    write_coco("coco.json", images=[("gone.jpg", 64, 48)])
    for argv, code, message in (
        (("--format=voc", "--input=gone"), 3, "no such directory: gone"),
        (
            ("--format=voc", "--input=voc/Annotations/000000.xml"),
            3,
            "no such directory: voc/Annotations/000000.xml",
        ),
        (("--format=voc", "--input=voc"), 2, "a split is needed; there are: train: voc"),
        (
            ("--format=voc", "--input=voc", "--split=trian"),
            2,
            "unknown split 'trian' (did you mean train?); there are: train: voc",
        ),
        (("--format=coco", "--input=gone.json"), 3, "no such file: gone.json"),
        (("--format=coco", "--input=voc"), 3, "not a regular file: voc"),
        (("--format=coco", "--input=coco.json", "--images=pictures"), 3, "no such file: pictures/gone.jpg"),
        ((*CONVERT, "--label_map=gone.json"), 3, "no such file: gone.json"),
    ):
        assert fault("convert", *argv, "--output=rec", code=code) == message
        assert [name for name in visible(Path("rec")) if name != "convert_report.json"] == []


def test_training_without_its_records(records):
    assert fault("train", *TRAIN, "--train=gone", code=3) == "no such records directory: gone"
    assert fault("train", *TRAIN, "--train=rec,gone", code=3) == "no such records directory: gone"
    assert fault("train", *TRAIN, "--train=rec", "--val=gone", code=3) == "no such records directory: gone"
    where = f"(working directory {os.getcwd()})"
    assert fault("train", *TRAIN, "--train=gone*", code=2) == f"no file matches 'gone*' {where}"
    assert fault("train", *TRAIN, "--train=voc", code=3) == "no records in voc; ssd_image_to_tf makes them"
    assert not Path("run").exists()


def test_training_with_weights_that_do_not_exist(records):
    argv = ("--train=rec", *TRAIN, "--set=model.weights=gone.h5")
    assert fault("train", *argv, code=3) == "model.weights: no such file: gone.h5"


def test_corrected_command_is_not_held_for_a_resumed_one(records):
    for wrong, near in (("tiny_sdd", " (did you mean tiny_ssd?)"), ("vgg61", " (did you mean vgg16?)")):
        message = fault("train", *TRAIN, "--train=rec", f"--set=model.backbone={wrong}", code=2)
        assert message.startswith(f"unknown backbone '{wrong}'{near}; there are: ")
    assert not Path("run").exists()


def test_scoring_without_run_or_records(records, run):
    Path("none.json").write_text("[]")
    for argv, code, message in (
        (("--run_dir=gone", "--data=rec"), 3, "no such run directory: gone"),
        (("--run_dir=run", "--data=gone"), 3, "no such records directory: gone"),
        (("--detections=gone.json", "--data=rec"), 3, "no such file: gone.json"),
        (
            ("--run_dir=run", "--data=rec", "--checkpoint=step-7"),
            3,
            "run has no checkpoint step-7 (there are: step-00000001)",
        ),
        (
            ("--run_dir=run", "--data=rec", "--checkpoint=best"),
            3,
            "run has no checkpoint best (there are: step-00000001)",
        ),
        (
            ("--run_dir=run", "--data=rec", "--checkpoint=last"),
            2,
            "--checkpoint: expected latest, best or step-N, got 'last'",
        ),
    ):
        assert fault("test", *argv, code=code) == message


def test_results_that_cannot_be_written_are_refused_before_the_work(records):
    argv = ("test", "--run_dir=gone", "--data=rec")
    assert fault(*argv, "--results=voc", code=5) == "a directory stands where a file is wanted: voc"
    below = "rec/manifest.json/a"
    assert fault(*argv, f"--results={below}/b.json", code=5) == (
        f"a part of the path is a file, not a directory: {below}"
    )


def test_results_in_a_new_folder(records):
    Path("none.json").write_text("[]")
    succeed("test", "--detections=none.json", "--data=rec", "--results=new/results.json")
    assert json.loads(Path("new/results.json").read_text()) == []


def test_demo_without_run_or_picture(voc, run):
    picture = "--input=voc/JPEGImages/000000.jpg"
    assert fault("demo", "--run_dir=run", "--input=gone.jpg", code=3) == "no such file: gone.jpg"
    assert fault("demo", "--run_dir=gone", picture, code=3) == "no such run directory: gone"
    assert fault("demo", "--run_dir=run", "--input=voc", code=3) == "no images in voc"
    assert fault("demo", "--run_dir=run", picture, "--output=out.xyz", code=2) == (
        "cannot write a .xyz: use .jpg or .png: out.xyz"
    )
    assert visible(Path.cwd()) == ["run", "voc"]


# Images that are none


@pytest.fixture
def bad_images(voc):
    """The same, but one JPEG is cut and one is a page of HTML."""
    cut, page = voc / "JPEGImages" / "000001.jpg", voc / "JPEGImages" / "000002.jpg"
    draw(cut, progressive=True)  # of those the whole size is not guessed
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    page.write_text("<!DOCTYPE html><title>404</title>")
    return [
        f"bad image: truncated JPEG (got {cut.stat().st_size:,} bytes): {cut}",
        f"bad image: not an image (starts with '<!DOCTYPE'): {page}",
    ]


def test_bad_images_stop_the_conversion(bad_images):
    message = fault("convert", *CONVERT, code=3)
    assert message == f"{bad_images[0]} (and 1 more)"
    assert visible(Path("rec")) == ["convert_report.json"]
    report = json.loads(Path("rec/convert_report.json").read_text())
    assert [row["message"] for row in report["skipped"]] == bad_images


@pytest.mark.parametrize(
    ("limit", "allowed"), [((), "0.04"), (("--max_skipped=1",), "1"), (("--max_skipped=0",), "0")]
)
def test_more_bad_images_than_allowed(bad_images, limit, allowed):
    message = fault("convert", *CONVERT, "--on_error=skip", *limit, code=3)
    assert message == (f"2 of 4 images cannot be used, --max_skipped allows {allowed}; the first: {bad_images[0]}")
    assert visible(Path("rec")) == ["convert_report.json"]


@pytest.mark.parametrize("limit", ["50%", "2"])
def test_bad_images_are_left_out_by_name(bad_images, limit):
    out = succeed("convert", *CONVERT, "--on_error=skip", f"--max_skipped={limit}").splitlines()
    assert [line for line in out if line.startswith("bad image")] == bad_images
    assert out[-2] == (
        "2 examples, 4 boxes (blue 2, red 2); 2 skipped, 0 boxes dropped, 0 clipped, 0 images without objects"
    )
    assert json.loads(Path("rec/manifest.json").read_text())["examples"] == 2


def test_failed_conversion_is_repaired_by_overwriting(bad_images):
    fault("convert", *CONVERT, code=3)
    succeed("convert", *CONVERT, "--on_error=skip", "--max_skipped=2", "--overwrite")
    assert len(visible(Path("rec"))) == 4


def test_missing_and_empty_image(voc):
    (voc / "JPEGImages" / "000000.jpg").unlink()
    (voc / "JPEGImages" / "000003.jpg").write_bytes(b"")
    message = fault("convert", *CONVERT, code=3)
    assert message.startswith("no image for 000000.xml in voc/JPEGImages (and 1 more")
    skipped = json.loads(Path("rec/convert_report.json").read_text())["skipped"]
    assert [row["message"] for row in skipped][1:] == ["bad image: empty file: voc/JPEGImages/000003.jpg"]


def test_demo_on_bad_images(bad_images, run):
    for stem, message in (("000001", bad_images[0]), ("000002", bad_images[1])):
        argv = ("--run_dir=run", f"--input=voc/JPEGImages/{stem}.jpg", "--output=out.jpg")
        assert fault("demo", *argv, code=3) == message
    assert visible(Path.cwd()) == ["run", "voc"]


def test_wrong_size_in_the_annotation(voc):
    path = voc / "Annotations" / "000002.xml"
    path.write_text(voc_xml([("red", 5, 5, 30, 20)], width=48, height=64))
    assert fault("convert", *CONVERT, code=3) == (
        "size says 48x64, image is 64x48 (rotated?): voc/JPEGImages/000002.jpg"
    )


# Annotations that cannot be read


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<annotation>\n<object>\n</annotation>\n", "000002.xml:3:3: not well-formed: mismatched tag"),
        ("", "000002.xml:1:1: not well-formed: no element found"),
        ("<html></html>", "root element is 'html', expected 'annotation': 000002.xml"),
        (
            '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>',
            "refused: XML declares entities: 000002.xml",
        ),
        (voc_xml([("red", 5, 5, "abc", 20)]), "object 1: xmax is not a finite number: 'abc': 000002.xml"),
        (voc_xml([("red", 5, 5, "nan", 20)]), "object 1: xmax is not a finite number: 'nan': 000002.xml"),
        (voc_xml([("red", 40, 5, 10, 20)]), "object 1: xmax 10 < xmin 40: 000002.xml"),
        ("<annotation><object><name>red</name></object></annotation>", "object 1: no <bndbox>: 000002.xml"),
        ("<annotation><object><name> </name></object></annotation>", "object 1: no <name>: 000002.xml"),
    ],
)
def test_broken_xml(voc, content, message):
    (voc / "Annotations" / "000002.xml").write_text(content)
    assert fault("convert", *CONVERT, code=3) == message
    assert visible(Path("rec")) == ["convert_report.json"]
    out = succeed("convert", *CONVERT, "--overwrite", "--on_error=skip", "--max_skipped=1")
    assert message in out.splitlines() and "3 examples, " in out


def test_broken_json(folder):
    whole = write_coco("coco.json", [("a.jpg", 64, 48)]).read_text()
    draw(folder / "a.jpg")
    for text, message in (
        (whole[:90], "coco.json: cut at byte 90"),
        (whole.replace("64", "NaN"), "coco.json: NaN is not a number in JSON"),
        (whole.replace('"width":', '"width"'), "coco.json:1:"),
        ("[]", 'coco.json: not an instances file: expected the lists "images", "annotations", "categories"'),
        ('{"images": [1], "annotations": [], "categories": []}', "coco.json: entry 1 of images is not an object"),
    ):
        Path("coco.json").write_text(text)
        assert fault("convert", *COCO, code=3).startswith(message)
        assert not Path("rec").exists()


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ([coco_box(1, [1, 1, 5, 5]), coco_box(1, [2, 2, 5, 5])], "coco.json: 1 duplicated annotation ids: 1"),
        (
            [coco_box(7, [1, 1, 5, 5], image_id=9)],
            "coco.json: 1 annotation of missing images (first: annotation 7)",
        ),
        ([coco_box(7, [1, 1, -5, 5])], "annotation 7: width -5 < 0: image 0 in coco.json"),
        ([coco_box(7, [1, 1, 5])], "annotation 7: bbox is not a list of 4 numbers: image 0 in coco.json"),
        (
            [coco_box(7, [1, 1, 5, 5], category_id=3)],
            "unknown class 'category_id 3' in 1 file: image 0 in coco.json",
        ),
        (
            [coco_box(7, [0.1, 0.1, 0.5, 0.5])],
            "all 1 boxes ≤ 1: did you mean --bbox_format=normalised?: coco.json",
        ),
    ],
)
def test_annotations_that_make_no_sense(folder, annotations, message):
    draw(folder / "a.jpg")
    write_coco("coco.json", [("a.jpg", 64, 48)], annotations)
    assert fault("convert", *COCO, code=3) == message


def test_file_name_that_leaves_the_folder(folder):
    write_coco("coco.json", [("../../etc/passwd", 64, 48)], [coco_box(1, [1, 1, 5, 5])])
    assert fault("convert", *COCO, code=3) == (
        "refused: path leaves the dataset root: ../../etc/passwd: image 0 in coco.json"
    )


# Classes


def test_chosen_class_that_does_not_exist(voc):
    message = fault("convert", *CONVERT, "--classes=red,bleu", code=2)
    assert message == "unknown class 'bleu' (did you mean blue?): voc"
    assert not Path("rec").exists()
    out = succeed("convert", *CONVERT, "--classes=red")
    assert "4 boxes of classes not chosen left out: 'blue' 4" in out.splitlines()
    assert "4 examples, 4 boxes (red 4)" in out


def test_class_that_the_label_map_does_not_have(voc):
    Path("map.json").write_text(json.dumps(LabelMap(("green", "Blue", "red")).to_json()))
    message = fault("convert", *CONVERT, "--label_map=map.json", code=3)
    assert message == ("unknown class 'blue' in 4 files (near: 'Blue'): 000000.xml (and 3 more)")


def test_classes_that_differ_by_case(voc):
    (voc / "Annotations" / "000003.xml").write_text(voc_xml([("Red", 5, 5, 30, 20)]))
    assert fault("convert", *CONVERT, code=3) == (
        "class 'Red' differs from 'red' only by case or spaces (did you mean 'red'?): 000003.xml"
    )


# Boxes


def test_boxes_outside_the_image_are_named_and_counted(folder):
    inside, clipped = ("red", 5, 5, 30, 20), ("red", -10, 5, 30, 20)
    silent, outside = ("red", 0, 0, 65, 48), ("red", 70, 5, 90, 20)
    write_voc(folder / "voc", {"a": [inside, clipped], "b": [silent, outside]})
    out = succeed("convert", *CONVERT).splitlines()
    assert out == [
        "box outside the image: object 2 'red' 69 4 90 20: voc/JPEGImages/b.jpg",
        "box clipped to the image: object 2 'red' -11 4 30 20: voc/JPEGImages/a.jpg",
        "2 examples, 3 boxes (red 3); 0 skipped, 1 boxes dropped, 1 clipped, 0 images without objects",
        "records in rec",
    ]
    report = json.loads(Path("rec/convert_report.json").read_text())
    assert (report["dropped"], report["clipped"]) == (out[:1], out[1:2])


def test_boxes_without_area_are_named_and_counted(folder):
    write_voc(folder / "voc", {"a": [("red", 5, 5, 30, 20), ("red", 5, 5, 5, 20)], "b": [("red", 5, 9, 6, 9)]})
    out = succeed("convert", *CONVERT).splitlines()
    assert out[:2] == [
        "degenerate box (zero area): object 2 'red' 5 5 5 20: a.xml",
        "degenerate box (zero area): object 1 'red' 5 9 6 9: b.xml",
    ]
    assert out[-2] == (
        "2 examples, 1 boxes (red 1); 0 skipped, 2 boxes dropped, 0 clipped, 1 images without objects"
    )


def test_set_without_objects(folder):
    write_voc(folder / "voc", {"a": [], "b": []})
    assert fault("convert", *CONVERT, code=3) == "no objects in any of the 2 images"
    assert visible(Path("rec")) == ["convert_report.json"]


def test_folder_without_annotations(folder):
    (folder / "voc").mkdir()
    draw(folder / "voc" / "a.jpg")
    argv = ("--format=voc", "--input=voc", "--output=rec")
    assert fault("convert", *argv, code=3) == "no usable example (0 of 0): no XML file in voc"


def test_split_that_is_empty(voc):
    (voc / "ImageSets" / "Main" / "train.txt").write_text("\n")
    assert fault("convert", *CONVERT, code=3) == "no usable example (0 of 0)"
    assert "manifest.json" not in visible(Path("rec"))


# Outputs


def test_output_that_is_not_empty(records):
    before = {path.name: path.read_bytes() for path in records.iterdir()}
    message = "rec is not empty; pass --overwrite to replace what is in it"
    assert fault("convert", *CONVERT, code=2) == message
    assert fault("synthesize", "--output=rec", "--num_images=1", code=2) == message
    assert {path.name: path.read_bytes() for path in records.iterdir()} == before


def test_output_that_is_the_input(voc):
    before = sorted(path for path in voc.rglob("*"))
    message = "the output is the input: voc"
    assert fault("convert", *CONVERT[:3], "--output=voc", "--overwrite", code=2) == message
    assert sorted(path for path in voc.rglob("*")) == before


@pytest.mark.parametrize("module", ["convert", "synthesize", "train"])
def test_output_where_a_file_stands(records, module):
    Path("file").write_text("precious")
    argv = {
        "convert": (*CONVERT[:3], "--output=file"),
        "synthesize": ("--output=file", "--num_images=1"),
        "train": ("--train=rec", *TRAIN, "--run_dir=file"),
    }[module]
    assert fault(module, *argv, code=5) == "a file stands where a directory is wanted: file"
    assert Path("file").read_text() == "precious"


def test_demo_never_writes_over_its_input(voc, run):
    pictures = voc / "JPEGImages"
    before = {path.name: path.read_bytes() for path in pictures.iterdir()}
    argv = ("--run_dir=run", f"--input={pictures / '000000.jpg'}", f"--output=voc/../{pictures}/000000.jpg")
    message = "the output would overwrite the input: voc/JPEGImages/000000.jpg"
    assert fault("demo", *argv, code=2) == message
    assert fault("demo", "--run_dir=run", f"--input={pictures}", f"--output={pictures}", code=2) == message
    assert {path.name: path.read_bytes() for path in pictures.iterdir()} == before


def test_demo_keeps_pictures_of_one_stem_apart(folder, run):
    (folder / "in").mkdir()
    draw(folder / "in" / "a.jpg", width=40)
    draw(folder / "in" / "a.png", width=50)
    draw(folder / "in" / "b.png", width=60)
    succeed("demo", "--run_dir=run", "--input=in", "--output=out")
    widths = {}
    for path in sorted(Path("out").iterdir()):
        with Image.open(path) as image:
            widths[path.name] = image.width
    assert sorted(widths.values()) == [40, 50, 60]
    assert widths["b.jpg"] == 60


# Disks


def test_disk_too_small_is_noticed_beforehand(voc, monkeypatch):
    usage = namedtuple("usage", "total used free")(100, 100, 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda directory: usage)
    assert fault("convert", *CONVERT, code=5) == "No space left: needs about 0.0 GiB, 0.0 free: rec"
    assert visible(Path("rec")) == []


@pytest.mark.parametrize("module", ["convert", "synthesize"])
def test_disk_that_becomes_full(voc, monkeypatch, module):
    def refuse(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)
    argv = {"convert": CONVERT, "synthesize": ("--output=rec", "--num_images=3", "--image_size=64")}[module]
    assert fault(module, *argv, code=5).startswith("No space left on the device: rec/")
    marks = {".lock", ".made_by_ssd_tf"}
    assert [path for path in Path("rec").rglob("*") if path.is_file() and path.name not in marks] == []


def test_disk_full_at_a_checkpoint_keeps_the_one_before(run):
    def refuse(directory):
        (directory / runs.WEIGHTS).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(EnvironmentFault, match=r"^No space left on the device: run/step-00000002$"):
        runs.save_checkpoint(run, 2, refuse, {}, 2)
    assert not (run / "step-00000002").exists()
    assert runs.find_checkpoint(run).path == run / "step-00000001"


# Records


def train_and_test_say(message):
    Path("none.json").write_text("[]")
    assert fault("train", "--train=rec", *TRAIN, code=3) == message
    assert fault("test", "--detections=none.json", "--data=rec", code=3) == message
    assert not Path("run").exists()


SHARD = "rec-00000-of-00001.tfrecord"


def test_records_of_an_interrupted_conversion(records):
    (records / "manifest.json").unlink()
    train_and_test_say("conversion was interrupted; rerun ssd_image_to_tf with --resume or delete: rec")


def test_records_without_a_shard(records):
    (records / SHARD).unlink()
    train_and_test_say("missing shard(s): 0 of 1: rec")


def test_records_with_a_short_shard(records):
    size = (records / SHARD).stat().st_size
    with open(records / SHARD, "r+b") as file:
        file.truncate(size - 9)
    message = f"shard 0 of 1 is {size - 9:,} bytes, manifest says {size:,}: re-convert: rec"
    train_and_test_say(message)


def test_records_with_a_cut_manifest(records):
    text = (records / "manifest.json").read_text()
    (records / "manifest.json").write_text(text[:60].rstrip())
    train_and_test_say(f"rec/manifest.json: cut at byte {len(text[:60].rstrip())}")
    (records / "manifest.json").write_text("{}")
    train_and_test_say("rec/manifest.json: not a manifest of records")
    (records / "manifest.json").write_text("[]")
    train_and_test_say("rec/manifest.json: not a manifest of records")


def test_records_with_a_flipped_bit(records):
    data = bytearray((records / SHARD).read_bytes())
    data[len(data) // 2] ^= 1
    (records / SHARD).write_bytes(data)
    Path("none.json").write_text("[]")
    message = fault("test", "--detections=none.json", "--data=rec", code=3)
    assert message.startswith("corrupted record in shard 0 at byte ")
    assert message.endswith(f" (crc): convert again (or ssd-train --skip_corrupt_records): rec/{SHARD}")


def test_records_that_are_compressed(records):
    Path("foreign.tfrecord").write_bytes(b"\x1f\x8b" + bytes(100))
    assert fault("train", "--train=foreign*", *TRAIN, code=3) == (
        "not a TFRecord (starts with 1f 8b: gzip): foreign.tfrecord"
    )


def test_records_of_other_classes(records, run):
    Path("mine.toml").write_text("")
    Path("map.json").write_text(json.dumps(LabelMap(("red", "blue")).to_json()))
    succeed("convert", *CONVERT[:3], "--output=other", "--label_map=map.json")
    message = "class map differs: shards have 'red' = 1, run has 'red' = 2"
    assert fault("test", "--run_dir=run", "--data=other", code=3) == message
    assert fault("train", "--train=rec,other", *TRAIN, code=3).startswith("class map differs: another has 'red'")
    assert fault("train", "--train=other", "--config=mine.toml", *TRAIN, code=3) == message
    assert fault("train", "--train=rec", *TRAIN, "--set=model.num_classes=5", code=2) == (
        "model.num_classes is 5, the records have 2 classes"
    )


def test_detections_that_belong_to_other_data(records):
    row = {"image_id": "000001", "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}
    for change, message in (
        ({"category_id": 7}, "d.json: category id 7 is not in the label map of the records"),
        ({"bbox": [1, 2, 3]}, "d.json: entry 2: bbox is not a list of 4 numbers"),
        ({"score": "high"}, "d.json: entry 2: score is not a finite number: 'high'"),
    ):
        Path("d.json").write_text(json.dumps([row, {**row, **change}]))
        assert fault("test", "--detections=d.json", "--data=rec", code=3) == message
    Path("d.json").write_text(json.dumps([{**row, "image_id": "elsewhere"}]))
    assert "elsewhere" in fault("test", "--detections=d.json", "--data=rec", code=3)
    Path("d.json").write_text(json.dumps([row])[:-9])
    assert fault("test", "--detections=d.json", "--data=rec", code=3).startswith("d.json: cut at byte ")


# Run directories


def test_run_that_is_not_finished(records, run):
    (run / "LATEST").unlink()
    message = "run is not a finished run (no LATEST)"
    assert fault("test", "--run_dir=run", "--data=rec", code=3) == message
    picture = "--input=voc/JPEGImages/000000.jpg"
    assert fault("demo", "--run_dir=run", picture, "--output=out.jpg", code=3) == message
    assert fault("demo", "--run_dir=rec", picture, code=3) == "rec is not a finished run (no LATEST)"
    assert not Path("out.jpg").exists()


def test_run_with_damaged_weights(voc, run):
    weights = run / "step-00000001" / runs.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-10])
    argv = ("--run_dir=run", "--input=voc/JPEGImages/000000.jpg")
    assert fault("demo", *argv, code=3) == "every checkpoint is damaged (step-00000001): run"
    assert fault("demo", *argv, "--checkpoint=step-1", code=3) == (
        "checkpoint step-00000001 is damaged: model.weights.h5 differs from what was written: run"
    )


def test_run_with_an_edited_config(voc, run):
    content = json.loads((run / "config.json").read_text())
    argv = ("--run_dir=run", "--input=voc/JPEGImages/000000.jpg")
    for section, key, value, message in (
        ("train", "batch_size", "8", "train.batch_size: expected integer, got '8'"),
        ("model", "backbon", "vgg16", "unknown key model.backbon (did you mean model.backbone?)"),
    ):
        changed = json.loads(json.dumps(content))
        changed["config"][section][key] = value
        (run / "config.json").write_text(json.dumps(changed))
        assert fault("demo", *argv, code=3).endswith(message)
    (run / "config.json").write_text(json.dumps({**content, "format_version": 99}))
    assert fault("demo", *argv, code=3) == "run/config.json: not a run of this version of ssd_tf"


@pytest.mark.parametrize(
    ("change", "key", "values"),
    [
        ("model.backbone=vgg16", "model.backbone", "tiny_ssd → vgg16"),
        ("model.image_size=128", "model.image_size", "(96, 96) → (128, 128)"),
        ("train.batch_size=2", "train.batch_size", "32 → 2"),
    ],
)
def test_resume_with_another_config(records, run, change, key, values):
    before = (run / "config.json").read_bytes()
    argv = ("--config=mine.toml", "--train=rec", *TRAIN)
    Path("mine.toml").write_text("")
    message = fault("train", *argv, f"--set={change}", code=2)
    assert message == f"cannot resume: {key} {values} (start a new run_dir, or --init_from)"
    assert (run / "config.json").read_bytes() == before


def test_config_may_change_before_the_first_checkpoint(folder):
    label_map, first = LabelMap(("a",)), configs.Config()
    second = configs.replace(first, model__backbone="vgg16")
    runs.start_run("new", first, label_map, 8)
    assert runs.start_run("new", second, LabelMap(("a", "b")), 8).config == second
    runs.save_checkpoint("new", 1, lambda place: (place / "x").write_bytes(b""), {}, 1)
    with pytest.raises(ConfigError, match=r"^cannot resume: model\.backbone vgg16 → mobilenet_v2 "):
        runs.start_run("new", first, LabelMap(("a", "b")), 8)


HOLDER = (
    "import sys; from ssd_tf import fileio\nwith fileio.directory_lock(sys.argv[1]): print(flush=True), input()"
)


@contextlib.contextmanager
def held(directory, repository):
    """Another process that writes to `directory`; yields its process id."""
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    command = [sys.executable, "-c", HOLDER, str(directory)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, **pipes) as child:
        child.stdout.readline()
        yield child.pid
        child.stdin.write(b"\n")


def test_two_processes_for_one_directory(records, run, repository):
    with held("run", repository) as number:
        message = fault("train", "--train=rec", *TRAIN, code=5)
        assert message.startswith(f"run is in use by pid {number} on ")
    Path("new").mkdir()
    with held("new", repository) as number:
        message = fault("convert", *CONVERT[:3], "--output=new", code=2)
        assert message.startswith(f"new is in use by pid {number} on ")
    assert visible(Path("new")) == []
    assert runs.find_checkpoint("run").state["step"] == 1


def test_results_never_overwrite_what_is_read(records):
    Path("found.json").write_text("[]")
    before = Path("rec/manifest.json").read_bytes()
    argv = ("--detections=found.json", "--data=rec")
    message = "the output would overwrite an input: "
    assert fault("test", *argv, "--results=rec/manifest.json", code=2) == message + "rec/manifest.json"
    assert fault("test", *argv, "--results=found.json", code=2) == message + "found.json"
    assert (Path("rec/manifest.json").read_bytes(), Path("found.json").read_text()) == (before, "[]")


def test_training_never_fills_a_directory_of_others(records):
    Path("mine").mkdir()
    Path("mine/config.txt").write_text("precious")
    argv = ("--train=rec", *TRAIN[:-1], "--run_dir=mine")
    assert fault("train", *argv, code=2) == "mine is not empty and not a run; choose another --run_dir"
    Path("mine/config.json").write_text("{}")
    assert fault("train", *argv, code=3) == "mine/config.json: not a run of this version of ssd_tf"
    assert Path("mine/config.json").read_text() == "{}"


def test_resuming_on_other_images_is_refused(tmp_path):
    config, labels = configs.Config(), LabelMap(("a",))
    path = runs.start_run(tmp_path / "run", config, labels, 8).path
    runs.save_checkpoint(path, 1, lambda folder: (folder / runs.WEIGHTS).write_bytes(b""), {}, 2)
    with pytest.raises(DataError, match=r"^cannot resume: --train has 9 images, the run's had 8: "):
        runs.start_run(path, config, labels, 9)


def test_demo_on_a_folder_leaves_bad_images_out(bad_images, run):
    draw(Path("voc/JPEGImages/good.jpg"))
    Path("voc/JPEGImages/._good.jpg").write_bytes(b"a file of another system")
    out = succeed("demo", "--run_dir=run", "--input=voc/JPEGImages", "--output=drawn")
    assert "bad image: truncated JPEG" in out and "bad image: not an image" in out and "._good" not in out
    assert "good.jpg" in visible(Path("drawn"))
