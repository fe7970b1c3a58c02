"""Label maps, examples and detections: what they hold, what they refuse, how they are shown."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssd_tf.errors import DataError
from ssd_tf.structures import Detections, Example, LabelMap

COCO = LabelMap(("person", "dog", "traffic light"), (1, 18, 10))


def refused(function, *arguments):
    with pytest.raises(DataError) as caught:
        function(*arguments)
    return str(caught.value)


def test_ids_are_positions_from_one():
    assert [COCO.name(i) for i in (1, 2, 3)] == ["person", "dog", "traffic light"]
    assert [COCO.id(name) for name in COCO.names] == [1, 2, 3]
    assert len(COCO) == 3
    assert LabelMap(("a", "b")).source_ids == (1, 2)
    assert len(LabelMap(())) == 0


def test_unknown_classes_are_named():
    assert refused(COCO.id, "dgo") == "unknown class 'dgo' (did you mean dog?)"
    assert refused(COCO.id, "Person") == "unknown class 'Person' (did you mean person?)"
    assert refused(COCO.id, "zebra") == "unknown class 'zebra'"
    for wrong in (0, 4, -1):
        assert refused(COCO.name, wrong) == f"class id {wrong} is not in 1..3"


def test_label_maps_that_contradict_themselves():
    assert refused(LabelMap, ("a", "b", "a")) == "class 'a' stands twice in the label map"
    needs = "the label map needs one distinct source id a class"
    assert refused(LabelMap, ("a", "b"), (1,)) == needs
    assert refused(LabelMap, ("a", "b"), (7, 7)) == needs


def test_label_map_json():
    assert COCO.to_json() == {
        "classes": [
            {"id": 1, "name": "person", "source_id": 1},
            {"id": 2, "name": "dog", "source_id": 18},
            {"id": 3, "name": "traffic light", "source_id": 10},
        ]
    }
    assert LabelMap.from_json({"classes": [{"id": 1, "name": "a"}]}, "x") == LabelMap(("a",))


@given(st.dictionaries(st.text(min_size=1), st.integers(-5, 10_000), max_size=8))
def test_label_map_survives_json(classes):
    ids = dict(enumerate(dict.fromkeys(classes.values())))
    names = tuple(classes)[: len(ids)]
    label_map = LabelMap(names, tuple(ids.values()))
    assert LabelMap.from_json(json.loads(json.dumps(label_map.to_json())), "x") == label_map


EXPECTED = 'm.json: expected {"classes": [{"id": 1, "name": ...}]}'


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], EXPECTED),
        (None, EXPECTED),
        ({"classes": None}, EXPECTED),
        ({"classes": [1]}, EXPECTED),
        ({"classes": [{"id": 1}]}, EXPECTED),
        ({"classes": ["ab"]}, EXPECTED),
        ({"classes": [{"id": "1", "name": "a"}]}, "m.json: class 1: id must be an integer and name a text"),
        ({"classes": [{"id": True, "name": "a"}]}, "m.json: class 1: id must be an integer and name a text"),
        ({"classes": [{"id": 1, "name": ""}]}, "m.json: class 1: id must be an integer and name a text"),
        (
            {"classes": [{"id": 1, "name": "a", "source_id": 1.5}]},
            "m.json: class 1: id must be an integer and name a text",
        ),
        (
            {"classes": [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}]},
            "m.json: ids start at 1, 0 is the background: class 1 ('a') has id 0, class 2 ('b') has id 1",
        ),
        (
            {"classes": [{"id": 2, "name": "a"}]},
            "m.json: gap in the ids: class 1 ('a') has id 2; --allow_gaps accepts it",
        ),
        (
            {"classes": [{"id": 3, "name": "a"}, {"id": 1, "name": "b"}]},
            "m.json: gap in the ids: class 1 ('a') has id 3 after class 2 ('b') with 1; --allow_gaps accepts it",
        ),
        (
            {"classes": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]},
            "m.json: class 1 (name 'a') and class 2 (name 'b') have the same id 1",
        ),
        (
            {"classes": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]},
            "m.json: class 1 (id 1) and class 2 (id 2) have the same name 'a'",
        ),
    ],
)
def test_damaged_label_map_json(value, message):
    assert refused(LabelMap.from_json, value, "m.json") == message


def test_gaps_in_the_ids_are_closed_where_they_are_allowed():
    rows = [{"id": 7, "name": "c"}, {"id": 1, "name": "a"}, {"id": 3, "name": "b", "source_id": 30}]
    label_map = LabelMap.from_json({"classes": rows}, "m.json", allow_gaps=True)
    assert label_map == LabelMap(("a", "b", "c"), (1, 30, 7))
    background = {"classes": [{"id": 0, "name": "a"}, {"id": 2, "name": "b"}]}
    assert refused(LabelMap.from_json, background, "m.json", True).startswith("m.json: ids start at 1, ")


def test_ids_may_stand_in_any_order():
    rows = [{"id": 2, "name": "b"}, {"id": 1, "name": "a"}]
    assert LabelMap.from_json({"classes": rows}, "m.json") == LabelMap(("a", "b"))


def test_example_brings_its_arrays_into_shape():
    example = Example("7", "a.jpg", [[1, 2, 3, 4], [5, 6, 7, 8]], ("dog", "cat"), difficult=[True])
    assert example.boxes.dtype == np.float64
    np.testing.assert_array_equal(example.boxes, [[1, 2, 3, 4], [5, 6, 7, 8]])
    np.testing.assert_array_equal(example.difficult, [True, False])
    np.testing.assert_array_equal(example.crowd, [False, False])
    assert example.truncated.dtype == bool and example.truncated.shape == (2,)
    assert (example.unit, example.size, example.area, example.dropped) == ("pixel", None, None, ())


def test_example_without_objects():
    example = Example("7", "a.jpg", [], ())
    assert example.boxes.shape == (0, 4) and example.crowd.shape == (0,)


@pytest.mark.parametrize("count", [4, 40])
def test_flags_of_many_images_do_not_mix(count):
    boxes, names = np.ones((count, 4)), ("a",) * count
    for pattern in ([], [False], [True], [False, True], [True] * count):
        example = Example("7", "a.jpg", boxes, names, truncated=pattern)
        assert example.truncated.tolist() == pattern + [False] * (count - len(pattern))
        assert not example.difficult.any() and len(example.crowd) == count


def test_examples_share_what_is_the_same():
    first, second = (Example(name, "a.jpg", np.ones((3, 4)), ("a",) * 3) for name in "pq")
    assert first.crowd is first.truncated is second.difficult
    assert Example("r", "a.jpg", [], ()).boxes is Example("s", "a.jpg", np.zeros((0, 4)), ()).boxes
    assert not hasattr(first, "__dict__")
    with pytest.raises(ValueError, match="read-only"):
        first.crowd[0] = True


def test_example_refuses_other_numbers_of_boxes():
    with pytest.raises(ValueError):
        Example("7", "a.jpg", [[1, 2, 3, 4]], ("dog", "cat"))
    with pytest.raises(ValueError):
        Example("7", "a.jpg", [[1, 2, 3, 4]], ("dog",), crowd=[True, False])


def detections():
    return Detections(
        np.array([[1.4, 2, 3, 4], [5, 6, 7.6, 8], [0, 0, 1, 1]], np.float32),
        np.array([0.9, 0.5, 0.25], np.float32),
        np.array([3, 1, 2], np.int32),
    )


def test_detections_above_a_score():
    found = detections()
    kept = found.above(0.5)  # the threshold itself is kept
    np.testing.assert_array_equal(kept.scores, np.float32([0.9, 0.5]))
    np.testing.assert_array_equal(kept.classes, [3, 1])
    np.testing.assert_array_equal(kept.boxes, found.boxes[:2])
    assert kept.boxes.dtype == np.float32 and kept.classes.dtype == np.int32
    assert (len(found), len(kept), len(found.above(0.0)), len(found.above(1.0))) == (3, 2, 3, 0)


def test_detections_are_readable():
    text = "Detections(3: class 3 0.90 [1 2 3 4], class 1 0.50 [5 6 8 8], class 2 0.25 [0 0 1 1])"
    assert repr(detections()) == text
    assert repr(detections().above(1)) == "Detections(0: )"
    many = Detections(np.zeros([7, 4], np.float32), np.full(7, 0.5, np.float32), np.ones(7, np.int32))
    assert repr(many) == f"Detections(7: {', '.join(['class 1 0.50 [0 0 0 0]'] * 5)}, ... 2 more)"


@pytest.mark.parametrize("value", [COCO, detections(), Example("7", "a.jpg", [], ())])
def test_travellers_cannot_be_changed(value):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, dataclasses.fields(value)[0].name, None)
