"""VOC folders: real data, the pixel rule, layouts, and files that must not be trusted."""

import collections
import os
import random

import numpy as np
import pytest

from ssd_tf.annotations import voc
from ssd_tf.annotations.annotation_set import BoxRules
from ssd_tf.errors import ConfigError, DataError, SsdError
from ssd_tf.structures import LabelMap


def make_object(name="cat", box=(1, 2, 3, 4), extra=""):
    edges = "".join(f"<{edge}>{value}</{edge}>" for edge, value in zip(("xmin", "ymin", "xmax", "ymax"), box))
    return f"<object><name>{name}</name>{extra}<bndbox>{edges}</bndbox></object>"


def make_xml(*objects, filename="", size="<size><width>500</width><height>375</height><depth>3</depth></size>"):
    return f"<annotation><filename>{filename}</filename>{size}{''.join(objects)}</annotation>"


def write_flat(folder, documents, images=None):
    """Writes XML files, and an empty image for each unless named otherwise."""
    for stem, text in documents.items():
        data = text if isinstance(text, bytes) else text.encode()
        (folder / f"{stem}.xml").write_bytes(data)
    for name in [f"{stem}.jpg" for stem in documents] if images is None else images:
        (folder / name).write_bytes(b"")
    return folder


def write_voc(folder, documents, lists, images=None):
    """Writes the layout with lists."""
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    write_flat(folder / "Annotations", documents, images=())
    write_flat(folder / "JPEGImages", {}, [f"{stem}.jpg" for stem in documents] if images is None else images)
    for name, text in lists.items():
        (folder / "ImageSets" / "Main" / f"{name}.txt").write_text(text, encoding="utf-8")
    return folder


def only_problem(folder, **options):
    """Returns the message of the single problem of a folder."""
    (problem,) = voc.read(folder, **options).problems
    return problem.message


# ---------------------------------------------------------------- real data


@pytest.mark.parametrize("split, count", [("trainval", 292), ("train", 205), ("val", 87), ("test", 72)])
def test_bccd_splits(bccd, split, count):
    found = voc.read(bccd, split)
    assert len(found.examples) == count
    assert found.label_map == LabelMap(("Platelets", "RBC", "WBC"))
    assert found.problems == ()
    assert [example.source_id for example in found.examples] == sorted(e.source_id for e in found.examples)
    assert all(example.size == (480, 640) and os.path.isfile(example.image) for example in found.examples)


def test_bccd_boxes_are_all_there_but_two_degenerate_ones(bccd):
    examples = voc.read(bccd, "trainval").examples + voc.read(bccd, "test").examples
    counts = collections.Counter(name for example in examples for name in example.names)
    dropped = [line for example in examples for line in example.dropped]
    assert dropped == [
        "degenerate box (zero area): object 13 'RBC' 504 337 504 337: BloodImage_00338.xml",
        "degenerate box (zero area): object 4 'RBC' 181 329 181 329: BloodImage_00343.xml",
    ]
    assert counts == {"RBC": 4155 - 2, "WBC": 372, "Platelets": 361}
    assert counts.total() == 4888 - 2
    sides = np.concatenate([example.boxes[:, 2:] - example.boxes[:, :2] for example in examples])
    assert sides.min() >= 2  # as annotated at least 1, and one more by the pixel rule


def test_bccd_box_by_hand(bccd):
    example = {e.source_id: e for e in voc.read(bccd, "trainval").examples}["BloodImage_00338"]
    # The file says xmin 453, ymin 81, xmax 555, ymax 182.
    assert example.boxes[0].tolist() == [80, 452, 182, 555] and example.names[0] == "RBC"


# ---------------------------------------------------------------- one file


def test_one_is_subtracted_from_xmin_and_ymin_only(tmp_path):
    write_flat(
        tmp_path,
        {"a": make_xml(make_object(box=(1, 11, 500, 375)), make_object(box=("8.5", "2", "9", "2.5")))},
    )
    (example,) = voc.read(tmp_path).examples
    assert example.boxes.tolist() == [[10, 0, 375, 500], [1, 7.5, 2.5, 9]]
    assert example.boxes.dtype == np.float64 and example.unit == "pixel"
    assert example.size == (375, 500) and example.area is None
    assert (example.source_id, example.image) == ("a", str(tmp_path / "a.jpg"))


def test_a_box_is_judged_before_the_shift(tmp_path):
    objects = [
        make_object("RBC", (5, 5, 9, 9)),
        make_object("RBC", (12, 40, 12, 55)),
        make_object("RBC", (1, 7, 3, 7)),
    ]
    write_flat(tmp_path, {"a": make_xml(*objects)})
    (example,) = voc.read(tmp_path).examples
    assert example.boxes.tolist() == [[4, 4, 9, 9]]
    assert example.dropped == (
        "degenerate box (zero area): object 2 'RBC' 12 40 12 55: a.xml",
        "degenerate box (zero area): object 3 'RBC' 1 7 3 7: a.xml",
    )


def test_inverted_boxes_can_be_swapped(tmp_path):
    write_flat(tmp_path, {"a": make_xml(make_object(), make_object(box=(40, 2, 10, 9)))})
    assert only_problem(tmp_path) == "object 2: xmax 10 < xmin 40: a.xml"
    (example,) = voc.read(tmp_path, rules=BoxRules(fix_boxes="swap")).examples
    assert example.boxes.tolist() == [[1, 0, 4, 3], [1, 9, 9, 40]]
    assert example.swapped == ("inverted box, edges swapped: object 2 'cat' 40 2 10 9: a.xml",)


def test_fractions_are_not_shifted(tmp_path):
    write_flat(tmp_path, {"a": make_xml(make_object(box=(0.25, 0, 0.5, "1e0")))})
    (example,) = voc.read(tmp_path, rules=BoxRules("normalised")).examples
    assert example.boxes.tolist() == [[0, 0.25, 1, 0.5]] and example.unit == "normalised"


def test_flags_may_be_missing_or_empty(tmp_path):
    extras = [
        "<difficult>1</difficult><truncated>0</truncated>",
        "<difficult/><truncated> 1 </truncated>",
        "",
        "<difficult>0</difficult><truncated>Unspecified</truncated>",
    ]
    write_flat(
        tmp_path,
        {"a": make_xml(*[make_object(extra=extra, box=(1, 1, 5 + i, 9)) for i, extra in enumerate(extras)])},
    )
    (example,) = voc.read(tmp_path).examples
    assert example.difficult.tolist() == [True, False, False, False]
    assert example.truncated.tolist() == [False, True, False, False]


def test_boxes_of_parts_are_not_objects(tmp_path):
    part = make_object("head", (2, 2, 3, 3)).replace("object>", "part>")
    write_flat(tmp_path, {"a": make_xml(make_object("person", (1, 1, 9, 9), extra=part))})
    found = voc.read(tmp_path)
    assert found.label_map.names == ("person",)
    assert found.examples[0].boxes.tolist() == [[0, 0, 9, 9]]
    alone = make_xml(f"<object><name>person</name>{part}</object>")
    write_flat(tmp_path, {"a": alone})
    assert only_problem(tmp_path) == "object 1: no <bndbox>: a.xml"


@pytest.mark.parametrize(
    "size",
    [
        "",
        "<size><width>0</width><height>0</height></size>",
        "<size/>",
        "<size><width>x</width><height>3</height></size>",
    ],
)
def test_a_size_that_says_nothing_is_none(tmp_path, size):
    write_flat(tmp_path, {"a": make_xml(make_object(), size=size)})
    assert voc.read(tmp_path).examples[0].size is None


def test_an_image_without_objects_is_kept(tmp_path):
    write_flat(tmp_path, {"a": make_xml(), "b": make_xml(make_object())})
    first = voc.read(tmp_path).examples[0]
    assert first.source_id == "a" and first.boxes.shape == (0, 4) and first.names == ()


def test_a_name_indented_by_a_pretty_printer_is_trimmed_and_others_are_not(tmp_path):
    write_flat(tmp_path, {"a": make_xml(make_object("\n\t\tcat\n\t"), make_object("dog "))})
    assert voc.read(tmp_path).label_map.names == ("cat", "dog ")


@pytest.mark.parametrize(
    "objects, message",
    [
        (
            [make_object(), make_object(), make_object(box=("abc", 1, 2, 3))],
            "object 3: xmin is not a finite number: 'abc': a.xml",
        ),
        ([make_object(box=(1, "nan", 2, 3))], "object 1: ymin is not a finite number: 'nan': a.xml"),
        ([make_object(box=(1, 2, "1e999", 3))], "object 1: xmax is not a finite number: '1e999': a.xml"),
        ([make_object(box=(40, 1, 10, 3))], "object 1: xmax 10 < xmin 40: a.xml"),
        (
            [make_object(box=(4, 9, 10, 3)), make_object(box=(9, 1, 3, 4))],
            "object 1: ymax 3 < ymin 9 (and 1 more): a.xml",
        ),
        ([make_object(box=(1, 2, 3))], "object 1: ymax is missing: a.xml"),
        (["<object><name>cat</name></object>"], "object 1: no <bndbox>: a.xml"),
        ([make_object(" ")], "object 1: no <name>: a.xml"),
        (["<object/>"], "object 1: no <name>: a.xml"),
    ],
)
def test_bad_objects_are_problems(tmp_path, objects, message):
    write_flat(tmp_path, {"a": make_xml(*objects), "b": make_xml(make_object())})
    found = voc.read(tmp_path)
    assert [(p.kind, p.source, p.message) for p in found.problems] == [("bad annotation", "a.xml", message)]
    assert [example.source_id for example in found.examples] == ["b"]


# ---------------------------------------------------------------- layouts


def test_a_split_is_needed_and_must_exist(tmp_path):
    lists = dict.fromkeys(("train", "val", "dog_train", "dog_val"), "a\n")
    write_voc(tmp_path, {"a": make_xml(make_object())}, lists)
    with pytest.raises(ConfigError) as caught:
        voc.read(tmp_path)
    assert str(caught.value) == f"a split is needed; there are: train, val (and 2 of single classes): {tmp_path}"
    with pytest.raises(
        ConfigError, match=r"^unknown split 'trian' \(did you mean train\?\); there are: train, val"
    ):
        voc.read(tmp_path, "trian")
    with pytest.raises(ConfigError, match=r"^unknown split '../Main/train'"):
        voc.read(tmp_path, "../Main/train")
    assert len(voc.read(tmp_path, "dog_train").examples) == 1


def test_only_the_split_is_read_but_classes_come_from_all_files(tmp_path):
    documents = {
        "1": make_xml(make_object("zebra")),
        "2": make_xml(make_object("ant")),
        "3": make_xml(make_object("bee")),
        "4": "<annotation><object>",
    }
    write_voc(tmp_path, documents, {"train": "\ufeff3\r\n1  -1\r\n\r\n3 1\r\n", "val": "2\n"})
    train, val = voc.read(tmp_path, "train"), voc.read(tmp_path, "val")
    assert train.label_map == val.label_map == LabelMap(("ant", "bee", "zebra"))
    assert [example.source_id for example in train.examples] == ["1", "3"]
    assert [example.source_id for example in val.examples] == ["2"]
    assert train.problems == val.problems == ()
    assert train.notes == (
        "1 repeated id in train.txt (first: 3)",
        "1 XML file outside the split cannot be read (first: 4.xml)",
    )


def test_ids_with_spaces_and_ids_that_look_like_flags(tmp_path):
    documents = {"my cat": make_xml(make_object()), "img 1": make_xml(make_object())}
    write_voc(tmp_path, documents, {"train": "my cat  1\nimg 1\n"})
    assert [example.source_id for example in voc.read(tmp_path, "train").examples] == ["img 1", "my cat"]


def test_listed_ids_without_xml_or_image_are_problems(tmp_path):
    documents = {"1": make_xml(make_object()), "2": make_xml(make_object()), "3": "<a"}
    write_voc(tmp_path, documents, {"train": "1\n2\n3\n../1\n"}, images=["1.jpg", "9.jpg"])
    found = voc.read(tmp_path, "train")
    assert [(problem.kind, problem.source, problem.message) for problem in found.problems] == [
        ("missing annotation", "../1", "listed in train.txt, but there is no ../1.xml"),
        ("bad annotation", "3.xml", "3.xml:1:1: not well-formed: unclosed token"),
        ("missing image", "2.xml", f"no image for 2.xml in {tmp_path / 'JPEGImages'}"),
    ]
    assert [example.source_id for example in found.examples] == ["1"]


def test_a_list_that_is_not_utf8_is_named(tmp_path):
    write_voc(tmp_path, {"1": make_xml(make_object())}, {})
    (tmp_path / "ImageSets/Main/train.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match=r"train\.txt is not UTF-8 \(byte 0xE9 at 3\)$"):
        voc.read(tmp_path, "train")


@pytest.mark.parametrize(
    "xml_folder, image_folder", [("", ""), ("Annotations", "JPEGImages"), ("Annotations", ""), ("", "images")]
)
def test_folders_without_lists_are_read_whole(tmp_path, xml_folder, image_folder):
    for part in (xml_folder, image_folder):
        (tmp_path / part).mkdir(exist_ok=True)
    documents = {name: make_xml(make_object()) for name in "abcde"}
    write_flat(tmp_path / xml_folder, documents, images=())
    write_flat(
        tmp_path / image_folder, {}, ["a.JPG", "b.jpeg", "c.Png", "x.webp", "y.bmp", "notes.txt", "._a.jpg"]
    )
    found = voc.read(tmp_path)
    names = [os.path.relpath(example.image, tmp_path / image_folder) for example in found.examples]
    assert names == ["a.JPG", "b.jpeg", "c.Png"]
    assert found.problems == ()
    assert found.notes == (
        "2 images without an annotation file (first: x.webp)",
        "2 annotation files without an image (first: d.xml)",
    )


def test_pairs_can_be_required(tmp_path):
    write_flat(tmp_path, {name: make_xml(make_object()) for name in "abc"}, ["a.jpg", "y.jpg", "x.jpg", "c.jpg"])
    with pytest.raises(DataError) as caught:
        voc.read(tmp_path, require_pairs=True)
    assert str(caught.value) == (
        "2 images without an annotation file (first: x.jpg), 1 annotation file without an image (first: b.xml) "
        f"(--require_pairs): {tmp_path}"
    )
    for name in ("b.jpg", "x.xml", "y.xml"):
        (tmp_path / name).write_text(make_xml(make_object()))
    assert len(voc.read(tmp_path, require_pairs=True).examples) == 5


def test_a_split_of_a_folder_without_lists_is_refused(tmp_path):
    write_flat(tmp_path, {"a": make_xml(make_object())})
    with pytest.raises(ConfigError, match=r"^split 'train' given, but there are no lists in ImageSets/Main: "):
        voc.read(tmp_path, "train")


def test_nothing_to_read(tmp_path):
    with pytest.raises(DataError, match=r"^no such directory: .*gone$"):
        voc.read(tmp_path / "gone")
    with pytest.raises(DataError, match=r"^no usable example \(0 of 0\): no XML file in "):
        voc.read(tmp_path)


# ---------------------------------------------------------------- which image


def test_the_stem_of_the_xml_decides_whatever_filename_says(tmp_path):
    write_flat(tmp_path, {"a": make_xml(make_object(), filename="../../etc/passwd")}, ["a.png", "b.png"])
    assert voc.read(tmp_path).examples[0].image == str(tmp_path / "a.png")


@pytest.mark.parametrize("filename", ["photo.png", "photo", "photo.jpg", "some/where/photo.png", "old\\photo.png"])
def test_filename_serves_where_the_stem_fits_no_image(tmp_path, filename):
    write_flat(tmp_path, {"a": make_xml(make_object(), filename=filename)}, ["photo.png", "b.png"])
    assert voc.read(tmp_path).examples[0].image == str(tmp_path / "photo.png")


@pytest.mark.parametrize(
    "filename", ["../../etc/passwd", "/etc/passwd", "..\\..\\etc\\passwd", "x/../../photo.png"]
)
def test_filename_that_is_needed_may_not_leave_the_folder(tmp_path, filename):
    write_flat(tmp_path, {"a": make_xml(make_object(), filename=filename)}, ["photo.png"])
    message = f"refused: path leaves the dataset root: {filename}: a.xml".replace("\\", "/")
    assert only_problem(tmp_path) == message


def test_two_images_of_one_stem_need_the_filename(tmp_path):
    write_flat(tmp_path, {"a": make_xml(make_object())}, ["a.jpg", "a.png"])
    assert only_problem(tmp_path) == "several images fit (a.jpg, a.png): a.xml"
    write_flat(tmp_path, {"a": make_xml(make_object(), filename="a.png")}, [])
    assert voc.read(tmp_path).examples[0].image == str(tmp_path / "a.png")


# ---------------------------------------------------------------- classes


def test_classes_filter_and_order(tmp_path):
    write_flat(tmp_path, {"a": make_xml(make_object("cat"), make_object("dog"), make_object("eel", (9, 9, 1, 1)))})
    found = voc.read(tmp_path, classes=("dog", "cat"))
    assert found.label_map == LabelMap(("dog", "cat")) and found.problems == ()
    assert found.examples[0].names == ("cat", "dog")
    assert found.notes == ("1 box of classes not chosen left out: 'eel' 1",)
    with pytest.raises(ConfigError, match=r"^unknown class 'dgo' \(did you mean dog\?\): "):
        voc.read(tmp_path, classes=("dgo",))


def test_a_label_map_makes_other_names_problems(tmp_path):
    documents = {f"{n}": make_xml(make_object("cat ")) for n in range(7)} | {"good": make_xml(make_object("cat"))}
    write_flat(tmp_path, documents)
    found = voc.read(tmp_path, label_map=LabelMap(("dog", "cat")))
    assert [example.source_id for example in found.examples] == ["good"]
    assert len(found.problems) == 7 and found.label_map.id("cat") == 2
    assert found.problems[0].message == "unknown class 'cat ' in 7 files (near: 'cat'): 0.xml"


def test_variants_of_a_class_name_are_refused(tmp_path):
    write_flat(
        tmp_path,
        {"a": make_xml(make_object("person")), "b": make_xml(make_object("person"), make_object("Person "))},
    )
    with pytest.raises(DataError) as caught:
        voc.read(tmp_path)
    assert str(caught.value) == (
        "class 'Person ' differs from 'person' only by case or spaces (did you mean 'person'?): b.xml"
    )


# ---------------------------------------------------------------- hostile files


def test_malformed_xml_is_placed(tmp_path):
    text = "<annotation>\n" + "  <object>\n  </object>\n" * 6 + "</annotatoin>\n"
    write_flat(tmp_path, {"000012": text})
    assert only_problem(tmp_path) == "000012.xml:14:3: not well-formed: mismatched tag"
    write_flat(tmp_path, {"000012": "<annotation>\n <a b&/></annotation>"})
    assert only_problem(tmp_path) == "000012.xml:2:6: not well-formed: invalid token"
    write_flat(tmp_path, {"000012": ""})
    assert only_problem(tmp_path) == "000012.xml:1:1: not well-formed: no element found"


LAUGHS = (
    '<!DOCTYPE a [<!ENTITY a0 "ha">'
    + "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
    + "]><annotation>&a9;</annotation>"
)
EXTERNAL = (
    '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation><filename>&x;</filename></annotation>'
)


@pytest.mark.parametrize("text", [LAUGHS, EXTERNAL, '<!DOCTYPE annotation SYSTEM "voc.dtd"><annotation/>'])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_declarations_are_refused_in_every_encoding(tmp_path, text, encoding):
    declared = f'<?xml version="1.0" encoding="{"utf-16" if "16" in encoding else "utf-8"}"?>\n' + text
    write_flat(tmp_path, {"000012": declared.encode(encoding)})
    assert only_problem(tmp_path) == "refused: XML declares entities: 000012.xml"


def test_encodings_that_hide_a_declaration_are_refused(tmp_path):
    head = b'<?xml version="1.0" encoding="cp037"?>'
    write_flat(tmp_path, {"a": head + LAUGHS.encode("cp037")})
    assert only_problem(tmp_path) == "encoding 'cp037' is not supported: a.xml"
    write_flat(tmp_path, {"a": b'<?xml version="1.0"?><annotation>\xe9</annotation>'})
    assert only_problem(tmp_path) == "text is not UTF-8: a.xml"


@pytest.mark.parametrize(
    "declared, written",
    [
        ("utf-8", "utf-8-sig"),
        ("utf-16", "utf-16"),
        ("UTF-16", "utf-16-be"),
        ("utf-16", "utf-8"),
        ("iso-8859-1", "latin-1"),
        ("GB2312", "gb2312"),
    ],
)
def test_encodings_of_ordinary_files(tmp_path, declared, written):
    name = "猫" if "gb" in written else "café"
    text = f'<?xml version="1.0" encoding="{declared}"?>\n' + make_xml(make_object(name))
    write_flat(tmp_path, {"a": text.encode(written)})
    found = voc.read(tmp_path)
    assert found.problems == () and found.label_map.names == (name,)


def test_a_large_file_is_refused_unread(tmp_path):
    write_flat(tmp_path, {"a": make_xml(make_object())})
    os.truncate(tmp_path / "a.xml", (16 << 20) + 1)
    assert only_problem(tmp_path) == "refused: annotation larger than 16 MiB: a.xml"
    os.truncate(tmp_path / "a.xml", 16 << 20)
    assert "not well-formed" in only_problem(tmp_path)


def test_nesting_and_numbers_of_elements_are_limited(tmp_path):
    write_flat(tmp_path, {"a": "<annotation>" + "<a>" * 1_000_000})
    assert only_problem(tmp_path) == "refused: XML nested too deeply: a.xml"
    write_flat(tmp_path, {"a": "<annotation>" + "<a>" * 100 + "</a>" * 100 + "</annotation>"})
    assert voc.read(tmp_path).problems == ()  # few elements are no danger, however deep
    write_flat(tmp_path, {"a": "<annotation>" + "<a/>" * 600_000 + "</annotation>"})
    assert only_problem(tmp_path) == "refused: XML with more than 500,000 elements: a.xml"


def test_another_kind_of_xml_is_named(tmp_path):
    write_flat(tmp_path, {"a": "<svg/>"})
    assert only_problem(tmp_path) == "root element is 'svg', expected 'annotation': a.xml"


def test_damaged_files_give_problems_and_never_tracebacks(tmp_path):
    good = make_xml(make_object("cat", (1, 2, 30, 40), "<difficult>1</difficult>"), filename="a.jpg").encode()
    generator = random.Random(0)
    write_flat(tmp_path, {}, ["a.jpg"])
    letters = list(good) + [0, 9, 0x80, 0xFF]
    num_read = 0
    for _ in range(400):
        data = bytearray(good)
        for _ in range(generator.randint(1, 2)):
            at = generator.randrange(len(data))
            end = at + generator.randint(0, 2)
            data[at:end] = generator.choices(letters, k=generator.randint(0, 2))
        write_flat(tmp_path, {"a": bytes(data)}, [])
        try:
            found = voc.read(tmp_path)
        except SsdError as error:
            assert "\n" not in str(error)
            continue
        num_read += len(found.examples)
        assert len(found.examples) + len(found.problems) == 1
        assert all("a.xml" in problem.message and "\n" not in problem.message for problem in found.problems)
        assert all(np.isfinite(example.boxes).all() for example in found.examples)
    assert 20 < num_read < 380  # the damage is neither nothing nor everything
