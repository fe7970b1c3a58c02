"""Annotations that are wrong, row by row of the table of faults: exit code and first line of the converter."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from fault_helpers import COCO, CONVERT, coco_box, draw, fault, succeed, visible, voc_xml, write_coco, write_voc

from ssd_tf import config as configs
from ssd_tf.annotations import coco
from ssd_tf.data import pipeline
from ssd_tf.errors import DataError
from ssd_tf.records import reader
from ssd_tf.structures import LabelMap

FLAT = ("--format=voc", "--input=flat", "--output=rec")
BOX = (5, 5, 30, 20)


def refused(voc, text, stem="000002"):
    """First line of the converter where one XML file holds `text`; it must be all that is wrong."""
    data = text if isinstance(text, bytes) else text.encode()
    (voc / "Annotations" / f"{stem}.xml").write_bytes(data)
    message = fault("convert", *CONVERT, code=3)
    assert visible(Path("rec")) == ["convert_report.json"]
    assert json.loads(Path("rec/convert_report.json").read_text())["skipped"][0]["message"] == message
    return message


def stored():
    """Examples of the records, by id."""
    return {example.source_id: example for example in reader.read_examples(reader.open_records("rec"))}


def test_row_20_malformed_xml(voc):
    text = "<annotation>\n" + "  <object>\n  </object>\n" * 6 + "</annotatoin>\n"
    assert refused(voc, text) == "000002.xml:14:3: not well-formed: mismatched tag"


LAUGHS = '<!DOCTYPE a [<!ENTITY a0 "ha">' + "".join(
    f'<!ENTITY a{number} "{f"&a{number - 1};" * 10}">' for number in range(1, 12)
)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_row_21_xml_that_declares_entities(voc, encoding):
    text = f'<?xml version="1.0" encoding="{encoding}"?>{LAUGHS}]><annotation>&a11;</annotation>'
    assert refused(voc, text.encode(encoding)) == "refused: XML declares entities: 000002.xml"
    text = f'<?xml version="1.0" encoding="{encoding}"?><!DOCTYPE annotation><annotation/>'
    assert fault("convert", *CONVERT, code=3) == "refused: XML declares entities: 000002.xml"


def test_row_22_external_entity_is_never_opened(voc, monkeypatch):
    Path("secret").write_text("top secret")
    opened = []
    true_open = os.open
    monkeypatch.setattr(
        os, "open", lambda path, *rest, **more: opened.append(path) or true_open(path, *rest, **more)
    )
    text = '<!DOCTYPE a [<!ENTITY x SYSTEM "secret">]><annotation><filename>&x;</filename></annotation>'
    assert refused(voc, text) == "refused: XML declares entities: 000002.xml"
    assert any("000002.xml" in str(path) for path in opened)
    assert not any("secret" in str(path) for path in opened)


def test_row_23_xml_of_500_megabytes(voc):
    path = voc / "Annotations" / "000002.xml"
    os.truncate(path, 500 << 20)
    assert fault("convert", *CONVERT, code=3) == "refused: annotation larger than 16 MiB: 000002.xml"


@pytest.mark.parametrize(
    ("tag", "message"),
    [
        ("nested_object_of_a_tree", "refused: annotation larger than 16 MiB"),
        ("a", "refused: XML nested too deeply"),
    ],
)
def test_row_23_a_million_nested_tags(voc, tag, message):
    assert refused(voc, "<annotation>" + f"<{tag}>" * 1_000_000) == f"{message}: 000002.xml"
    closed = "<annotation>" + f"<{tag}>" * 1_000_000 + f"</{tag}>" * 1_000_000 + "</annotation>"
    (voc / "Annotations" / "000002.xml").write_text(closed)
    assert fault("convert", *CONVERT, code=3) == f"{message}: 000002.xml"


@pytest.mark.parametrize("name", ["../../etc/passwd", "..\\..\\etc\\passwd", "/etc/passwd"])
def test_row_24_filename_that_leaves_the_folder(voc, name):
    path = voc / "Annotations" / "000002.xml"
    text = voc_xml([("red", *BOX)]).replace("<size>", f"<filename>{name}</filename><size>")
    path.write_text(text)
    succeed("convert", *CONVERT)  # the image is found by the XML file's own name
    assert "000002" in stored()
    (voc / "JPEGImages" / "000002.jpg").unlink()
    message = fault("convert", *CONVERT, "--overwrite", code=3)
    assert message == f"refused: path leaves the dataset root: {name}: 000002.xml".replace("\\", "/")


def test_row_24_file_name_in_json_that_leaves_the_folder(folder):
    write_coco("coco.json", [("../../etc/passwd", 64, 48)], [coco_box(1, [1, 1, 5, 5])])
    message = fault("convert", *COCO, code=3)
    assert message == "refused: path leaves the dataset root: ../../etc/passwd: image 0 in coco.json"


def test_row_25_size_that_is_wrong_or_missing(voc):
    text = voc_xml([("red", *BOX)])
    turned = text.replace("64", "H").replace("48", "64").replace("H", "48")
    assert refused(voc, turned) == "size says 48x64, image is 64x48 (rotated?): voc/JPEGImages/000002.jpg"
    other = text.replace("<width>64", "<width>63")
    (voc / "Annotations" / "000002.xml").write_text(other)
    message = fault("convert", *CONVERT, code=3)
    assert message == "size says 63x48, image is 64x48: voc/JPEGImages/000002.jpg"
    start, end = text.index("<size>"), text.index("</size>")
    for missing in (text[:start] + text[end + 7 :], text.replace("64", "0").replace("48", "0")):
        (voc / "Annotations" / "000002.xml").write_text(missing)
        succeed("convert", *CONVERT, "--overwrite")
        assert stored()["000002"].size == (48, 64)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("<xmin>5</xmin>", "<xmin>abc</xmin>", "object 3: xmin is not a finite number: 'abc'"),
        ("<xmin>5</xmin>", "", "object 3: xmin is missing"),
        ("<ymax>20", "<ymax>nan", "object 3: ymax is not a finite number: 'nan'"),
        ("<ymax>20", "<ymax>1e999", "object 3: ymax is not a finite number: '1e999'"),
        ("<ymin>5", "<ymin>-inf", "object 3: ymin is not a finite number: '-inf'"),
        ("bndbox", "box", "object 3: no <bndbox>"),
    ],
)
def test_row_26_edges_that_are_no_numbers(voc, old, new, message):
    good, bad = [("red", 1, 2, 3, 4)] * 2, [("red", *BOX)]
    text = voc_xml(good + bad)
    at = text.rindex("<object>")
    assert refused(voc, text[:at] + text[at:].replace(old, new)) == f"{message}: 000002.xml"


def test_row_26_sides_that_are_no_numbers_in_json(folder):
    draw(folder / "a.jpg")
    for value, message in (("abc", "'abc'"), (True, "True"), ("1e999", "'1e999'")):
        write_coco("coco.json", [("a.jpg", 64, 48)], [coco_box(3, [1, 1, value, 5])])
        text = f"annotation 3: width is not a finite number: {message}: image 0 in coco.json"
        assert fault("convert", *COCO, code=3) == text


def test_row_27_inverted_boxes(voc):
    rows = [("red", 1, 2, 3, 4), ("red", 1, 2, 3, 4), ("red", 40, 6, 10, 20)]
    assert refused(voc, voc_xml(rows)) == "object 3: xmax 10 < xmin 40: 000002.xml"
    swap = (*CONVERT, "--overwrite", "--fix_boxes=swap")
    (voc / "Annotations" / "000003.xml").write_text(voc_xml([("red", 9, 30, 30, 7)]))
    out = succeed("convert", *swap).splitlines()
    swapped = [
        "inverted box, edges swapped: object 3 'red' 40 6 10 20: 000002.xml",
        "inverted box, edges swapped: object 1 'red' 9 30 30 7: 000003.xml",
    ]
    assert [line for line in out if "swapped: " in line] == swapped
    assert ", 2 swapped, " in out[-2]
    assert json.loads(Path("rec/convert_report.json").read_text())["swapped"] == swapped
    np.testing.assert_array_equal(stored()["000002"].boxes[2], [5, 9, 20, 40])
    np.testing.assert_array_equal(stored()["000003"].boxes, [[6, 8, 30, 30]])


def test_row_27_negative_sides(folder):
    draw(folder / "a.jpg")
    write_coco("coco.json", [("a.jpg", 64, 48)], [coco_box(7, [30, 20, -10, 8])])
    assert fault("convert", *COCO, code=3) == "annotation 7: width -10 < 0: image 0 in coco.json"
    out = succeed("convert", *COCO, "--overwrite", "--fix_boxes=swap")
    assert out.splitlines()[0] == (
        "inverted box, edges swapped: annotation 7 'red' 30 20 -10 8: image 0 in coco.json"
    )
    np.testing.assert_array_equal(stored()["0"].boxes, [[20, 20, 28, 30]])


def test_row_27_unknown_word_for_the_cure(voc):
    message = fault("convert", *CONVERT, "--fix_boxes=swop", code=2)
    assert message == "--fix_boxes: 'swop' is none of error, swap (did you mean swap?)"


def test_row_28_boxes_without_area(folder):
    write_voc(folder / "voc", {"a": [("red", *BOX), ("red", 7, 5, 7, 20), ("red", 5, 9, 30, 9)]})
    out = succeed("convert", *CONVERT).splitlines()
    assert out[:2] == [
        "degenerate box (zero area): object 2 'red' 7 5 7 20: a.xml",
        "degenerate box (zero area): object 3 'red' 5 9 30 9: a.xml",
    ]
    assert "1 examples, 1 boxes (red 1); 0 skipped, 2 boxes dropped, " in out[2]
    np.testing.assert_array_equal(stored()["a"].boxes, [[4, 4, 20, 30]])


def test_row_29_boxes_partly_or_fully_outside(folder):
    write_voc(folder / "voc", {"a": [("red", *BOX), ("red", 40, 20, 99, 40)], "b": [("red", 70, 5, 90, 20)]})
    out = succeed("convert", *CONVERT).splitlines()
    assert out[:2] == [
        "box outside the image: object 1 'red' 69 4 90 20: voc/JPEGImages/b.jpg",
        "box clipped to the image: object 2 'red' 39 19 99 40: voc/JPEGImages/a.jpg",
    ]
    assert out[2].endswith("; 0 skipped, 1 boxes dropped, 1 clipped, 1 images without objects")
    np.testing.assert_array_equal(stored()["a"].boxes[1], [19, 39, 40, 64])
    assert stored()["b"].boxes.shape == (0, 4)


def test_row_30_off_by_one_at_the_border(folder):
    write_voc(folder / "voc", {"a": [("red", 0, 0, 65, 49)], "b": [("red", -1, 0, 64, 48)]})
    out = succeed("convert", *CONVERT).splitlines()
    assert out[0] == "box clipped to the image: object 1 'red' -2 -1 64 48: voc/JPEGImages/b.jpg"
    assert len(out) == 3 and " 1 clipped, " in out[1]
    np.testing.assert_array_equal(stored()["a"].boxes, [[0, 0, 48, 64]])


def test_row_31_fractions_where_pixels_are_expected(folder):
    rows = [("red", 0.25, 0.25, 0.5, 0.75)] * 602
    write_voc(folder / "voc", {"a": rows, "b": rows})
    assert fault("convert", *CONVERT, code=3) == "all 1,204 boxes ≤ 1: did you mean --bbox_format=normalised?: voc"
    assert visible(Path("rec")) == []
    succeed("convert", *CONVERT, "--bbox_format=normalised")
    boxes = stored()["b"].boxes
    assert boxes.shape == (602, 4)
    np.testing.assert_array_equal(np.unique(boxes, axis=0), [[12, 16, 36, 32]])


def test_row_31_pixels_where_fractions_are_expected(voc):
    message = fault("convert", *CONVERT, "--bbox_format=normalised", code=3)
    assert message == (
        "8 of 8 boxes far above 1: did you mean --bbox_format=pixel? (first: 'red' 5 5 30 20): 000000.xml"
    )
    message = fault("convert", *CONVERT, "--bbox_format=normalized", code=2)
    assert message.endswith("'normalized' is none of pixel, normalised (did you mean normalised?)")


def test_row_31_area_of_fractions_is_in_pixels(folder):
    draw(folder / "a.jpg")
    write_coco("coco.json", [("a.jpg", 64, 48)], [coco_box(7, [0.25, 0.5, 0.5, 0.25], area=0.1)])
    succeed("convert", *COCO, "--bbox_format=normalised")
    assert stored()["0"].area.tolist() == [32 * 12]


def test_row_32_unknown_class(folder):
    write_voc(folder / "voc", {f"{number}": [("cat ", *BOX)] for number in range(7)})
    Path("map.json").write_text(json.dumps(LabelMap(("dog", "cat")).to_json()))
    message = fault("convert", *CONVERT, "--label_map=map.json", code=3)
    assert message == "unknown class 'cat ' in 7 files (near: 'cat'): 0.xml (and 6 more)"


def write_map(*rows):
    Path("map.json").write_text(json.dumps({"classes": [{"id": number, "name": name} for number, name in rows]}))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(1, "red"), (1, "blue")], "class 1 (name 'red') and class 2 (name 'blue') have the same id 1"),
        ([(1, "red"), (2, "blue"), (3, "red")], "class 1 (id 1) and class 3 (id 3) have the same name 'red'"),
        (
            [(0, "red"), (1, "blue")],
            "ids start at 1, 0 is the background: class 1 ('red') has id 0, class 2 ('blue') has id 1",
        ),
        (
            [(1, "red"), (3, "blue")],
            "gap in the ids: class 2 ('blue') has id 3 after class 1 ('red') with 1; --allow_gaps accepts it",
        ),
    ],
)
def test_row_33_label_map_that_contradicts_itself(voc, rows, message):
    write_map(*rows)
    assert fault("convert", *CONVERT, "--label_map=map.json", code=3) == f"map.json: {message}"
    assert not Path("rec").exists()
    if rows[-1][0] != 3 or len(rows) == 3:  # a gap alone is no fault where gaps are allowed
        argv = (*CONVERT, "--label_map=map.json", "--allow_gaps")
        assert fault("convert", *argv, code=3) == f"map.json: {message}"


def test_row_33_gaps_are_closed_where_they_are_allowed(voc):
    write_map((1, "red"), (7, "blue"))
    succeed("convert", *CONVERT, "--label_map=map.json", "--allow_gaps")
    assert json.loads(Path("rec/label_map.json").read_text())["classes"] == [
        {"id": 1, "name": "red", "source_id": 1},
        {"id": 2, "name": "blue", "source_id": 7},
    ]


def test_row_33_categories_that_repeat(folder):
    draw(folder / "a.jpg")
    content = json.loads(
        write_coco("coco.json", [("a.jpg", 64, 48)], categories=("red", "blue", "red")).read_text()
    )
    message = "coco.json: category 1 (id 1) and category 3 (id 3) have the same name 'red'"
    assert fault("convert", *COCO, code=3) == message
    content["categories"][2] = {"id": 2, "name": "green"}
    Path("coco.json").write_text(json.dumps(content))
    message = "coco.json: category 2 (name 'blue') and category 3 (name 'green') have the same id 2"
    assert fault("convert", *COCO, code=3) == message


@pytest.mark.parametrize("name", ["Person", "person ", "per son"])
def test_row_34_variants_of_a_class(folder, name):
    write_voc(folder / "voc", {"a": [("person", *BOX)], "b": [("person", *BOX)], "c": [(name, *BOX)]})
    assert fault("convert", *CONVERT, code=3) == (
        f"class {name!r} differs from 'person' only by case or spaces (did you mean 'person'?): c.xml"
    )


def test_row_35_repeated_ids(folder):
    annotations = [coco_box(number, [1, 1, 5, 5]) for number in (*range(10, 17), *range(10, 16), 10)]
    write_coco("coco.json", [("a.jpg", 64, 48)], annotations)
    message = "coco.json: 6 duplicated annotation ids: 10, 11, 12, 13, 14, ..."
    assert fault("convert", *COCO, code=3) == message
    content = json.loads(write_coco("coco.json", [(f"{number}.jpg", 64, 48) for number in range(3)]).read_text())
    content["images"][2]["id"] = 1
    Path("coco.json").write_text(json.dumps(content))
    assert fault("convert", *COCO, code=3) == "coco.json: 1 duplicated image ids: 1"


def test_row_36_annotations_of_missing_images_and_images_without(folder):
    draw(folder / "a.jpg")
    draw(folder / "b.jpg")
    images = [("a.jpg", 64, 48), ("b.jpg", 64, 48)]
    write_coco(
        "coco.json", images, [coco_box(4, [1, 1, 5, 5]), *(coco_box(n, [1, 1, 5, 5], image_id=9) for n in (5, 6))]
    )
    assert fault("convert", *COCO, code=3) == "coco.json: 2 annotations of missing images (first: annotation 5)"
    write_coco("coco.json", images, [coco_box(4, [1, 1, 5, 5])])
    out = succeed("convert", *COCO).splitlines()
    assert out[0] == "1 image without annotations (first: b.jpg)"
    assert out[1].startswith("2 examples, 1 boxes (red 1); ") and out[1].endswith(" 1 images without objects")


def test_row_37_category_ids_with_gaps(folder):
    draw(folder / "a.jpg")
    content = json.loads(write_coco("coco.json", [("a.jpg", 64, 48)], [coco_box(1, [1, 2, 30, 40])]).read_text())
    content["categories"] = [
        {"id": 90, "name": "toothbrush"},
        {"id": 18, "name": "dog"},
        {"id": 1, "name": "person"},
    ]
    content["annotations"][0]["category_id"] = 90
    Path("coco.json").write_text(json.dumps(content))
    succeed("convert", *COCO)
    classes = json.loads(Path("rec/label_map.json").read_text())["classes"]
    assert [(row["id"], row["name"], row["source_id"]) for row in classes] == [
        (1, "person", 1),
        (2, "dog", 18),
        (3, "toothbrush", 90),
    ]
    found = {"image_id": 0, "category_id": 90, "bbox": [1, 2, 30, 40], "score": 0.5}
    Path("found.json").write_text(json.dumps([found]))
    argv = ("--detections=found.json", "--data=rec", "--results=out.json", "--metric=voc", "--json")
    result = json.loads(succeed("test", *argv).splitlines()[-1])
    assert result["per_class"]["toothbrush"] == 1
    assert json.loads(Path("out.json").read_text()) == [found]


def test_row_38_crowds_and_odd_boxes(folder):
    draw(folder / "a.jpg")
    whole = [
        coco_box(1, ["1", "2.5", "30", 4e1], iscrowd=1, segmentation={"counts": [1], "size": [48, 64]}),
        coco_box(2, [5, 6, 0, 9], iscrowd=0),
        coco_box(3, [5, 6, 7, 9], iscrowd=0),
    ]
    write_coco("coco.json", [("a.jpg", 64, 48)], whole)
    out = succeed("convert", *COCO).splitlines()
    assert out[0] == "degenerate box (zero area): annotation 2 'red' 5 6 0 9: image 0 in coco.json"
    example = stored()["0"]
    assert example.crowd.tolist() == [True, False]
    np.testing.assert_array_equal(example.boxes, [[2.5, 1, 42.5, 31], [6, 5, 15, 12]])
    del whole[2]["bbox"]
    write_coco(
        "coco.json", [("a.jpg", 64, 48)], [whole[0], whole[1], {**whole[2], "segmentation": [[1, 1, 2, 2, 3, 1]]}]
    )
    assert fault("convert", *COCO, "--overwrite", code=3) == "annotation 3: no bbox: image 0 in coco.json"


@pytest.mark.parametrize("ascii_only", [True, False])
def test_row_39_json_that_is_cut(folder, ascii_only):
    box = coco_box(1, [1, 1.5, -5e300, 5], crowd=True, difficult=False, area=None)
    content = json.loads(write_coco("instances.json", [("é猫😀.jpg", 64, 48)], [box]).read_text())
    data = json.dumps(content, ensure_ascii=ascii_only).encode()
    for size in range(1, len(data) - 1):
        Path("instances.json").write_bytes(data[:size])
        with pytest.raises(DataError, match=f"^instances.json: cut at byte {size:,}$"):
            coco.read("instances.json", ".")
    argv = ("--format=coco", "--input=instances.json", "--output=rec")
    assert fault("convert", *argv, code=3) == f"instances.json: cut at byte {len(data) - 2:,}"


def test_row_39_json_of_two_gigabytes_and_nan(folder):
    argv = ("--format=coco", "--input=instances.json", "--output=rec")
    text = write_coco("instances.json", [("a.jpg", 64, 48)]).read_text()
    Path("instances.json").write_text(text.replace("64", "NaN"))
    assert fault("convert", *argv, code=3) == "instances.json: NaN is not a number in JSON"
    os.truncate("instances.json", (2 << 30) + 1)
    assert fault("convert", *argv, code=3) == "refused: larger than 2048 MiB: instances.json"


def test_row_42_label_file_that_is_not_utf8(voc):
    Path("labels.txt").write_bytes('{"classes": [é'.encode("latin-1") + b"]}")
    message = fault("convert", *CONVERT, "--label_map=labels.txt", code=3)
    assert message == "labels.txt is not UTF-8 (byte 0xE9 at 13)"
    (voc / "ImageSets/Main/train.txt").write_bytes(b"000001\n000002\n\xe9\n")
    assert fault("convert", *CONVERT, code=3) == "voc/ImageSets/Main/train.txt is not UTF-8 (byte 0xE9 at 14)"


@pytest.fixture
def unpaired(folder):
    """A flat folder: one pair, two XML files without image, three images without XML file."""
    (folder / "flat").mkdir()
    for stem in ("a", "b", "c"):
        (folder / "flat" / f"{stem}.xml").write_text(voc_xml([("red", *BOX)]))
    for stem in ("a", "x", "y", "z"):
        draw(folder / "flat" / f"{stem}.jpg")


def test_row_43_annotations_without_image_and_images_without_annotation(unpaired):
    out = succeed("convert", *FLAT).splitlines()
    assert out[:2] == [
        "3 images without an annotation file (first: x.jpg)",
        "2 annotation files without an image (first: b.xml)",
    ]
    assert out[2].startswith("1 examples, ")
    message = fault("convert", *FLAT, "--overwrite", "--require_pairs", code=3)
    assert message == f"{out[0]}, {out[1]} (--require_pairs): flat"


def test_row_43_pairs_that_are_complete(voc):
    succeed("convert", *CONVERT, "--require_pairs")
    assert len(stored()) == 4


def test_row_44_empty_or_all_skipped(voc):
    write_coco("coco.json")
    assert fault("convert", *COCO, code=3) == "no usable example (0 of 0)"
    for stem in range(4):
        (voc / "JPEGImages" / f"{stem:06d}.jpg").write_bytes(b"")
    for limit in ((), ("--max_skipped=100%",)):
        message = fault("convert", *CONVERT, "--on_error=skip", *limit, "--overwrite", code=3)
        first = "bad image: empty file: voc/JPEGImages/000000.jpg"
        assert message == f"no usable example (0 of 4); the first that cannot be used: {first}"
    assert visible(Path("rec")) == ["convert_report.json"]


def test_row_45_three_thousand_boxes_reach_the_targets(folder):
    rows = [("red", 2 * x + 1, 2 * y + 1, 2 * x + 2, 2 * y + 2) for y in range(50) for x in range(60)]
    write_voc(folder / "voc", {"a": rows})
    draw(folder / "voc/JPEGImages/a.jpg", width=120, height=100)
    (folder / "voc/Annotations/a.xml").write_text(voc_xml(rows, 120, 100))
    assert "1 examples, 3,000 boxes (red 3,000); " in succeed("convert", *CONVERT)
    boxes = stored()["a"].boxes
    assert boxes.shape == (3000, 4) and len(np.unique(boxes, axis=0)) == 3000
    anchors = (boxes / [100, 120, 100, 120]).astype(np.float32)  # each box has an anchor of its own
    config = configs.load_config(None, ["model.image_size=96", "train.batch_size=1"])
    _, targets, _ = next(iter(pipeline.validation_batches(reader.open_records("rec"), anchors, config)))
    assert targets["class_logits"].shape == (1, 3000) and np.all(targets["class_logits"] == 1)
    np.testing.assert_allclose(targets["box_deltas"][0], [[0, 0, 0, 0, 1]] * 3000, atol=1e-3)


def test_row_46_repeated_boxes(folder):
    write_voc(
        folder / "voc", {"a": [("red", *BOX)] * 3 + [("blue", *BOX)], "b": [("red", *BOX), ("red", 6, 5, 30, 20)]}
    )
    out = succeed("convert", *CONVERT).splitlines()
    assert out[0] == "2 duplicate boxes in 1 image (first: a)"
    assert "2 examples, 6 boxes (blue 1, red 5); " in out[1]
    assert stored()["a"].names == ("red", "red", "red", "blue")
