"""Class names: the public sets, files of labels, and which column of a file's heads is whose."""

import json
from types import SimpleNamespace

import pytest

from ssd_tf.errors import DataError
from ssd_tf.pretrained import classes
from ssd_tf.structures import LabelMap

COCO_GAPS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)


def source(known="coco", has_background=True):
    return SimpleNamespace(classes=known, has_background=has_background)


def write(folder, text, name="labels.txt"):
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_public_sets():
    assert len(classes.COCO) == 80
    assert sorted({*range(1, 91)} - {*classes.COCO}) == list(COCO_GAPS)
    assert [classes.COCO[number] for number in (1, 13, 44, 90)] == ["person", "stop sign", "bottle", "toothbrush"]
    assert list(classes.COCO) == sorted(classes.COCO)
    assert len(classes.VOC) == 20 and sorted(classes.VOC.values()) == list(classes.VOC.values())
    assert (classes.VOC[1], classes.VOC[15], classes.VOC[20]) == ("aeroplane", "person", "tvmonitor")


def test_gaps_of_coco_join_the_background():
    chosen = classes.choose_classes(source(), 91)
    assert chosen.background == (0, *COCO_GAPS)
    assert chosen.columns == chosen.source_ids == tuple(classes.COCO)
    assert chosen.names[11] == "stop sign" and chosen.columns[11] == 13
    assert (len(chosen.names), chosen.total) == (80, 91)
    assert sorted(chosen.order) == list(range(91))


def test_sigmoids_have_no_background():
    chosen = classes.choose_classes(source(has_background=False), 91)
    assert chosen.background == () and chosen.order == tuple(classes.COCO)


def test_voc():
    chosen = classes.choose_classes(source("voc"), 21)
    assert (chosen.background, chosen.columns, chosen.total) == ((0,), tuple(range(1, 21)), 21)
    assert chosen.names == tuple(classes.VOC.values()) and chosen.source_ids == tuple(range(1, 21))


@pytest.mark.parametrize(
    ("known", "columns", "message"),
    [
        ("coco", 4, "the file has 3 classes: name them with --labels=FILE, one name a line"),
        ("coco", 2, "the file has 1 class: name it with --labels=FILE, one name a line"),
        ("coco", 21, "the file has 20 classes: name them"),
        ("voc", 91, "the file has 90 classes: name them"),
        ("coco", 81, "the file has 80 classes: name them"),
        ("coco", 1, "the file has no class beside the background"),
        ("coco", 0, "the file has no class beside the background"),
    ],
)
def test_unknown_number_of_classes(known, columns, message):
    with pytest.raises(DataError) as caught:
        classes.choose_classes(source(known), columns)
    assert str(caught.value).startswith(message)


def test_labels_as_many_as_columns():
    chosen = classes.choose_classes(source("voc"), 4, LabelMap(("c", "a", "b"), (7, 3, 9)))
    assert (chosen.names, chosen.columns, chosen.source_ids) == (("c", "a", "b"), (1, 2, 3), (7, 3, 9))
    assert chosen.background == (0,)


def test_labels_replace_known_names():
    chosen = classes.choose_classes(source("voc"), 21, LabelMap(tuple("abcdefghijklmnopqrst")))
    assert chosen.names == tuple("abcdefghijklmnopqrst")


def test_coco_names_of_a_file_leave_the_gaps():
    chosen = classes.choose_classes(source(), 91, LabelMap(tuple(classes.COCO.values())))
    assert chosen == classes.choose_classes(source(), 91)
    backwards = classes.choose_classes(source(), 91, LabelMap(tuple(classes.COCO.values())[::-1]))
    assert backwards.columns[:2] == backwards.source_ids[:2] == (90, 89)
    assert backwards.names[0] == "toothbrush" and backwards.background == (0, *COCO_GAPS)


def test_label_map_with_gaps():
    labels = LabelMap(("cat", "dog"), (2, 5))
    chosen = classes.choose_classes(source(), 6, labels)
    assert (chosen.columns, chosen.source_ids, chosen.background) == ((2, 5), (2, 5), (0, 1, 3, 4))
    assert classes.choose_classes(source(has_background=False), 6, labels).background == ()


def test_label_map_with_gaps_that_is_cut():
    ids = [number for number in classes.COCO if number < 50]
    labels = LabelMap(tuple(classes.COCO[number] for number in ids), tuple(ids))
    with pytest.raises(DataError) as caught:
        classes.choose_classes(source(), 91, labels)
    assert str(caught.value) == "--labels ends at id 49, the file has 90 classes"


@pytest.mark.parametrize(
    ("labels", "columns"),
    [
        (LabelMap(("a", "b")), 4),
        (LabelMap(("a", "b", "c", "d")), 4),
        (LabelMap(("a", "b"), (2, 4)), 4),
        (LabelMap(("a", "b"), (0, 2)), 4),
        (LabelMap(tuple(f"n{i}" for i in range(80))), 91),
    ],
)
def test_another_number_of_labels(labels, columns):
    with pytest.raises(DataError) as caught:
        classes.choose_classes(source(), columns, labels)
    assert str(caught.value) == f"--labels names {len(labels)} classes, the file has {columns - 1}"


@pytest.mark.parametrize(
    "text",
    ["cat\ndog\n", "BACKGROUND\ncat\ndog", "background\r\ncat\r\n dog \r\n\r\n", "__background__\ncat\ndog\n"],
)
def test_one_name_a_line(tmp_path, text):
    assert classes.read_labels(write(tmp_path, text)) == LabelMap(("cat", "dog"))


def test_background_is_dropped_in_the_first_line_alone(tmp_path):
    assert classes.read_labels(write(tmp_path, "cat\nbackground\n")).names == ("cat", "background")


def torchvision_names():
    names = ["__background__", *(classes.COCO.get(number, "N/A") for number in range(1, 91))]
    return "\n".join(names)


def test_columns_without_a_class_are_left_out(tmp_path):
    labels = classes.read_labels(write(tmp_path, torchvision_names()))
    assert dict(zip(labels.source_ids, labels.names, strict=True)) == classes.COCO
    assert classes.choose_classes(source(), 91, labels) == classes.choose_classes(source(), 91)
    labels = classes.read_labels(write(tmp_path, "cat\nN/A\ndog\nN/A\n"))
    assert labels == classes.ColumnLabels(("cat", "dog"), (1, 3), 4)
    assert classes.choose_classes(source(), 5, labels).background == (0, 2, 4)


@pytest.mark.parametrize(
    ("text", "lines", "columns"),
    [
        ("\n".join(torchvision_names().split("\n")[:50]), 49, 91),
        ("\n".join(torchvision_names().split("\n")[:-1]), 89, 91),
        ("\n".join(torchvision_names().split("\n")[2:]), 89, 91),
        (torchvision_names() + "\nN/A", 91, 91),
        (torchvision_names(), 90, 81),
        ("cat\nN/A\ndog\n", 3, 3),
    ],
)
def test_lists_of_columns_are_whole(tmp_path, text, lines, columns):
    labels = classes.read_labels(write(tmp_path, text))
    with pytest.raises(DataError) as caught:
        classes.choose_classes(source(), columns, labels)
    assert str(caught.value) == (
        f"--labels has {lines} lines of classes and N/A, the file has {columns - 1} classes"
    )


def test_assumed_names_are_told():
    line = "classes: VOC's 20 names are assumed; --labels=FILE names others"
    assert classes.describe_assumption(source("voc")) == line
    assert classes.describe_assumption(source()) == line.replace("VOC's 20", "COCO's 80")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("N/A\nN/A\n", " names no class"),
        ("a\nN/A\na\n", ":3: 'a' stands in line 1 already"),
        ("cat\n\ndog\n", ":2: a class without a name"),
        ("BACKGROUND\ncat\ndog\ncat\n", ":4: 'cat' stands in line 2 already"),
        ("", " names no class"),
        ("BACKGROUND\n", " names no class"),
        ("cat\n" + "x" * 201, ":2: not the name of a class: 'xxxx"),
        ("cat\nd\x1bog\n", ":2: not the name of a class: 'd"),
        ("item { id: 1 name: 'x'", ": cut inside an item"),
        ("item {\n  id: 1\n", ": cut inside an item"),
        ("item {\n  name: 'x'\n}", ":1: an item without an id"),
        ("item {\n}\nitem { id: 1 }", ":1: an item without an id"),
        ("item { id: 1 name: 'y' }\nitem { id: 2 }", ":2: a class without a name"),
        ("item { id: 1 name: 'y' }\nitem { id: 1 name: 'x' }", ": item 1 (name 'y') and item 2 (name 'x') have"),
        ("item { id: 1 name: 'y' }\nitem { id: 2 name: 'y' }", ": item 1 (id 1) and item 2 (id 2) have the same"),
        ("item { id: -1 name: 'y' }", ": ids start at 1, 0 is the background"),
        ("item { id: 1 name: 'y' }\nthing { }", ":2: expected 'item', found 'thing'"),
        ("item { id: 1\nname: 'y }", ':2: no label map: "\'y }"'),
        ("item { id: 1 name 'y' }", ":1: expected ':', found \"'y'\""),
        ("item { id: 99999999999 name: 'y' }", ":1: an item without an id"),
        ("item { id: 0 name: 'background' }", " names no class"),
        ("item { id: 1.0 name: 'y' }", ":1: an item without an id"),
        ("item { id { a: 1 } name: 'y' }", ":1: an item without an id"),
        ("item { id: 1 name: ['y'] }", ":1: a class without a name"),
        ("item { id: 1 name: 'y' a { b: [", ": cut inside an item"),
        ("item { id: 1\na { b: [ } }", ":2: expected ']', found '}'"),
        ("item { a " + "{" * 50_000, ": cut inside an item"),
    ],
)
def test_refused_labels(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(DataError) as caught:
        classes.read_labels(path)
    assert str(caught.value).startswith(f"{path}{message}")


def test_refused_files(tmp_path):
    with pytest.raises(DataError, match=r"no such file: .*none\.txt"):
        classes.read_labels(tmp_path / "none.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match=r"latin.txt is not UTF-8 \(byte 0xE9 at 3\)"):
        classes.read_labels(tmp_path / "latin.txt")
    with open(tmp_path / "large.txt", "wb") as file:
        file.truncate((1 << 20) + 1)
    with pytest.raises(DataError, match=r"refused: larger than 1 MiB: .*large\.txt"):
        classes.read_labels(tmp_path / "large.txt")
    (tmp_path / "large.txt").rename(tmp_path / "large.json")
    with pytest.raises(DataError, match=r"refused: larger than 1 MiB: .*large\.json"):
        classes.read_labels(tmp_path / "large.json")


def test_label_map_of_the_object_detection_api(tmp_path):
    text = """# COCO, the beginning
    item {
      name: "/m/01g317"
      id: 1
      display_name: "person"
    }
    item: { id: 13, name: 'stop "sign"' }
    item { display_name: 'it\\'s' id: 2 name: 'x' keypoints: 7 }
    item { id: 0 name: 'none_of_the_above' }
    """
    labels = classes.read_labels(write(tmp_path, text, "map.pbtxt"))
    assert labels == LabelMap(("person", "it's", 'stop "sign"'), (1, 2, 13))


def test_fields_of_no_use_are_passed_over(tmp_path):
    text = """item {
      keypoints { id: 7 label: "nose" shape { points: [1, -.5, 2.5e-3] } }
      keypoints: { id: 8 }
      ancestor_ids: ["/m/0", '}']
      weight: 0.5, share: -1.
      id: 3 name: "person" nothing {} none: []
    }
    item { id: 1 name: "dog" }"""
    assert classes.read_labels(write(tmp_path, text, "map.pbtxt")) == LabelMap(("dog", "person"), (1, 3))


def test_label_map_of_ours(tmp_path):
    labels = LabelMap(("person", "stop sign"), (1, 13))
    path = write(tmp_path, json.dumps(labels.to_json()), "label_map.json")
    assert classes.read_labels(path) == labels
    path = write(tmp_path, json.dumps({"classes": []}), "empty.json")
    with pytest.raises(DataError, match=r"empty\.json names no class"):
        classes.read_labels(path)


def test_long_files_take_no_long_time(tmp_path):
    assert len(classes.read_labels(write(tmp_path, "".join(f"n{i}\n" for i in range(20_000))))) == 20_000
    with pytest.raises(DataError, match="names no class"):
        classes.read_labels(write(tmp_path, " " * 50_000))
    text = "#\n" * 50_000 + " " * 50_000 + "item { id: 1 name: 'x' }"
    assert classes.read_labels(write(tmp_path, text)).names == ("x",)
