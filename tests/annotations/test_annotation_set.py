"""Judging boxes, choosing classes, and the notes that all formats share."""

import numpy as np
import pytest

from ssd_tf.annotations import annotation_set
from ssd_tf.annotations.annotation_set import AnnotatedObject, BoxRules, ClassChoice
from ssd_tf.errors import ConfigError, DataError
from ssd_tf.structures import LabelMap


def make_image(source_id, *objects):
    return annotation_set.pack_image(f"{source_id}.xml", source_id, f"{source_id}.jpg", (50, 60), objects)


def choose_all(*names):
    return ClassChoice(LabelMap(names), frozenset(names))


@pytest.mark.parametrize("value, expected", [(" 12.5\n", 12.5), (3, 3.0), ("-1e2", -100.0), (0, 0.0)])
def test_finite_number_takes_numbers_and_texts(value, expected):
    assert annotation_set.finite_number(value, "x") == expected


@pytest.mark.parametrize("value", ["abc", "", "nan", "1e999", "-inf", True, [1], float("nan"), 10**400, {}])
def test_finite_number_names_what_is_wrong(value):
    with pytest.raises(DataError, match=r"^area is not a finite number: ."):
        annotation_set.finite_number(value, "area")


@pytest.mark.parametrize(
    "corners, message",
    [
        (("abc", 1, 2, 3), "object 3: xmin is not a finite number: 'abc'"),
        ((1, 1, 2, "1e999"), "object 3: ymax is not a finite number: '1e999'"),
        ((1, None, 2, 3), "object 3: ymin is missing"),
        ((40, 1, 10, 3), "object 3: xmax 10 < xmin 40"),
        (("1", "7.5", "2", "7.25"), "object 3: ymax 7.25 < ymin 7.5"),
    ],
)
def test_check_box_refuses(corners, message):
    with pytest.raises(DataError) as caught:
        annotation_set.check_box(corners, "object 3")
    assert str(caught.value) == message


def test_check_box_leaves_equal_edges_to_the_caller():
    corners, swapped = annotation_set.check_box(("12", "40", "12", "55.5"), "object 2")
    assert corners == (12.0, 40.0, 12.0, 55.5) and not swapped
    assert annotation_set.is_degenerate(corners)
    assert annotation_set.is_degenerate((1, 5, 2, 5))
    assert not annotation_set.is_degenerate((1, 5, 2, 5.001))
    line = annotation_set.degenerate_line("object 2", "RBC", corners)
    assert line == "degenerate box (zero area): object 2 'RBC' 12 40 12 55.5"


@pytest.mark.parametrize(
    "stated, corners",
    [
        ((40, 1, 10, 3), (10, 1, 40, 3)),
        (("1", "7.5", "2", "7.25"), (1, 7.25, 2, 7.5)),
        ((9, 8, 1, 2), (1, 2, 9, 8)),
    ],
)
def test_inverted_boxes_can_be_put_right(stated, corners):
    assert annotation_set.check_box(stated, "object 1", "swap") == (corners, True)
    assert annotation_set.check_box(corners, "object 1", "swap") == (corners, False)
    with pytest.raises(DataError, match="is not a finite number"):
        annotation_set.check_box((9, 8, 1, "nan"), "object 1", "swap")


def test_rules_refuse_words_they_do_not_know():
    with pytest.raises(ConfigError, match=r"^--bbox_format: 'normalized' is none of pixel, normalised \(did you"):
        BoxRules("normalized")
    with pytest.raises(ConfigError, match=r"^--fix_boxes: 'yes' is none of error, swap$"):
        BoxRules(fix_boxes="yes")


@pytest.mark.parametrize(
    "height, width, expected",
    [
        ("375", "500", (375, 500)),
        (480.0, 640, (480, 640)),
        ("0", "0", None),
        (None, 3, None),
        (5, "x", None),
        (-1, 4, None),
    ],
)
def test_read_size(height, width, expected):
    assert annotation_set.read_size(height, width) == expected


def test_choose_classes_takes_the_data_the_list_or_the_label_map():
    found = {"cat": ["a"], "dog": ["a", "b"], "eel": ["b"]}
    from_data = annotation_set.choose_classes(found, "here")
    assert from_data.label_map == LabelMap(("cat", "dog", "eel"))
    assert from_data.kept == {"cat", "dog", "eel"} and not from_data.left_out
    chosen = annotation_set.choose_classes(found, "here", ("eel", "cat"), None, {"cat": 5, "dog": 7, "eel": 9})
    assert chosen.label_map == LabelMap(("eel", "cat"), (9, 5))
    assert chosen.kept == {"eel", "cat"} and chosen.left_out == {"dog"}
    given = LabelMap(("dog", "ant"))
    assert annotation_set.choose_classes(found, "here", (), given) == ClassChoice(given, frozenset(("dog", "ant")))
    both = annotation_set.choose_classes(found, "here", ("ant",), given)
    assert both == ClassChoice(given, frozenset(("ant",)), frozenset(found))


def test_choose_classes_refuses_wrong_choices():
    found = {"cat": ["a"], "dog": ["a"]}
    with pytest.raises(ConfigError, match=r"^unknown class 'dgo' \(did you mean dog\?\): here$"):
        annotation_set.choose_classes(found, "here", ("cat", "dgo"))
    with pytest.raises(ConfigError, match=r"^class 'cat' is chosen twice$"):
        annotation_set.choose_classes(found, "here", ("cat", "dog", "cat"))


def test_class_names_that_differ_by_case_or_spaces_are_refused_unless_chosen():
    found = {"Person": ["1.xml"], "person": ["2.xml", "3.xml"], "dog": ["1.xml"]}
    with pytest.raises(DataError) as caught:
        annotation_set.choose_classes(found, "here")
    assert str(caught.value) == (
        "class 'Person' differs from 'person' only by case or spaces (did you mean 'person'?): 1.xml"
    )
    with pytest.raises(DataError, match=r"'traffic light ' differs from 'traffic light' only"):
        annotation_set.choose_classes({"traffic light": ["1"], "traffic light ": ["2"]}, "here")
    assert annotation_set.choose_classes(found, "here", ("person",)).left_out == {"Person", "dog"}


def test_unknown_classes_cost_one_problem_an_image_and_are_counted():
    images = [make_image(str(n), AnnotatedObject("cat ", (1, 2, 3, 4))) for n in range(7)]
    images += [make_image("8", AnnotatedObject("cat", (1, 2, 3, 4)), AnnotatedObject("zebra", (1, 2, 3, 4)))]
    found = annotation_set.assemble(images, choose_all("cat", "dog"), "here")
    assert found.examples == ()
    assert [problem.kind for problem in found.problems] == ["unknown class"] * 8
    assert found.problems[0].message == "unknown class 'cat ' in 7 files (near: 'cat'): 0.xml"
    assert found.problems[6].source == "6.xml"
    assert found.problems[7].message == "unknown class 'zebra' in 1 file: 8.xml"


def test_assemble_sorts_drops_and_keeps_flags_in_step():
    image = make_image(
        "b",
        AnnotatedObject("cat", (1, 2, 3, 4), difficult=True, area=5.0),
        AnnotatedObject("dog", (1, 2, 1, 4), degenerate="degenerate box: object 2", area=6.0),
        AnnotatedObject("dog", (5, 6, 7, 9), crowd=True, truncated=True, area=7.0),
    )
    found = annotation_set.assemble([image, make_image("a")], choose_all("cat", "dog"), "here")
    first, second = found.examples
    assert (first.source_id, second.source_id) == ("a", "b")
    assert first.boxes.shape == (0, 4) and first.area is None
    np.testing.assert_array_equal(second.boxes, [[1, 2, 3, 4], [5, 6, 7, 9]])
    assert second.names == ("cat", "dog") and second.size == (50, 60)
    assert second.difficult.tolist() == [True, False]
    assert second.crowd.tolist() == second.truncated.tolist() == [False, True]
    assert second.area.tolist() == [5.0, 7.0]
    assert second.dropped == ("degenerate box: object 2: b.xml",)


def test_swapped_boxes_are_listed_with_their_image():
    swapped = AnnotatedObject("cat", (1, 2, 3, 4), swapped="inverted box: object 1")
    choice = ClassChoice(LabelMap(("cat",)), frozenset(("cat",)), frozenset(("dog",)))
    image = make_image("a", swapped, swapped._replace(name="dog"), AnnotatedObject("cat", (5, 6, 7, 8)))
    (example,) = annotation_set.assemble([image], choice, "here").examples
    assert example.swapped == ("inverted box: object 1: a.xml",) and example.names == ("cat", "cat")
    np.testing.assert_array_equal(example.boxes, [[1, 2, 3, 4], [5, 6, 7, 8]])


def test_area_survives_a_fault_of_a_class_left_out():
    choice = ClassChoice(LabelMap(("cat",)), frozenset(("cat",)), frozenset(("dog",)))
    image = make_image("a", AnnotatedObject("dog", fault="bad"), AnnotatedObject("cat", (0, 0, 9, 9), area=5.0))
    (example,) = annotation_set.assemble([image], choice, "here").examples
    assert example.area.tolist() == [5.0] and example.boxes.tolist() == [[0, 0, 9, 9]]


def test_faults_of_one_image_are_one_problem_and_classes_left_out_are_not_judged():
    image = make_image(
        "a",
        AnnotatedObject("cat", fault="object 1: bad"),
        AnnotatedObject("dog", (0, 0, 9, 9)),
        AnnotatedObject("cat", fault="object 3: bad"),
    )
    found = annotation_set.assemble([image], choose_all("cat", "dog"), "here")
    assert [(p.kind, p.source, p.message) for p in found.problems] == [
        ("bad annotation", "a.xml", "object 1: bad (and 1 more): a.xml")
    ]
    choice = ClassChoice(LabelMap(("dog",)), frozenset(("dog",)), frozenset(("cat",)))
    found = annotation_set.assemble([image], choice, "here")
    assert found.problems == () and found.examples[0].names == ("dog",)
    assert found.notes == ("2 boxes of classes not chosen left out: 'cat' 2",)


def test_duplicate_boxes_are_kept_and_counted():
    box = AnnotatedObject("cat", (1, 2, 3, 4))
    other_class, other_box = AnnotatedObject("dog", (1, 2, 3, 4)), AnnotatedObject("cat", (1, 2, 3, 5))
    images = [
        make_image("a", box, other_class, other_box),
        make_image("b", box, box, box),
        make_image("c", box, box),
    ]
    found = annotation_set.assemble(images, choose_all("cat", "dog"), "here")
    assert [len(example.names) for example in found.examples] == [3, 3, 2]
    assert found.notes == ("3 duplicate boxes in 2 images (first: b)",)


def test_normalised_coordinates_are_refused():
    small = AnnotatedObject("cat", (0.1, 0.2, 0.3, 1.0))
    images = [make_image(str(n), *[small] * 301) for n in range(4)]
    with pytest.raises(DataError, match=r"^all 1,204 boxes ≤ 1: did you mean --bbox_format=normalised\?: here$"):
        annotation_set.assemble(images, choose_all("cat"), "here")
    images.append(make_image("z", AnnotatedObject("cat", (0, 0, 2, 1))))
    assert len(annotation_set.assemble(images, choose_all("cat"), "here").examples) == 5


def test_pixels_are_refused_where_fractions_are_expected():
    small, edge = AnnotatedObject("cat", (0.1, 0.2, 0.3, 1.0)), AnnotatedObject("cat", (-0.5, 0, 1.9, 2))
    found = annotation_set.assemble(
        [make_image("a", small, edge)], choose_all("cat"), "here", (), (), "normalised"
    )
    assert found.examples[0].unit == "normalised"
    far = AnnotatedObject("cat", (7, 11, 30, 2.5))
    images = [make_image("b", small, far), make_image("c", far)]
    with pytest.raises(DataError) as caught:
        annotation_set.assemble(images, choose_all("cat"), "here", (), (), "normalised")
    assert str(caught.value) == (
        "2 of 3 boxes far above 1: did you mean --bbox_format=pixel? (first: 'cat' 11 7 2.5 30): b.xml"
    )


def test_count_note():
    assert annotation_set.count_note("image{s} lost", []) == ()
    assert annotation_set.count_note("image{s} lost", ["a"]) == ("1 image lost (first: a)",)
    assert annotation_set.count_note("image{s} lost", ["b", "a"]) == ("2 images lost (first: b)",)
