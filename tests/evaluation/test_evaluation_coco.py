"""COCO's numbers against pycocotools, and what the library leaves to us: areas, ignored objects, ids."""

import contextlib
import dataclasses
import io
import json
import logging

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ssd_tf.errors import DataError
from ssd_tf.evaluation import coco
from ssd_tf.structures import Detections, Example, LabelMap

CLASSES = LabelMap(("cat", "dog", "zebra"), source_ids=(17, 18, 90))
SIZE = (400, 600)
EMPTY = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))


def image(source_id, boxes, names=None, **more):
    """One Example of yxyx pixel boxes, all cats unless `names` says otherwise."""
    names = tuple(names or ["cat"] * len(boxes))
    return Example(source_id, "", np.array(boxes, float).reshape(-1, 4), names, size=SIZE, **more)


def found(boxes, scores, classes=None):
    """Detections of yxyx boxes, all cats unless `classes` says otherwise."""
    boxes = np.array(boxes, np.float32).reshape(-1, 4)[:, [1, 0, 3, 2]]
    classes = np.ones(len(boxes)) if classes is None else classes
    return Detections(boxes, np.array(scores, np.float32), np.array(classes, np.int32))


def random_case(seed, num_classes=2):
    """Images with objects of all sizes, some a crowd, and noisy detections of them among wrong ones."""
    random = np.random.default_rng(seed)
    truths, detections = [], {}
    for source_id in ("10", "9", "000000000042", "b/image 1", "é", "z"):
        count = random.integers(0, 7)
        corners = random.uniform(0, [200, 300], (count, 2))
        boxes = np.concatenate([corners, corners + random.choice([20, 60, 150], (count, 1))], axis=1)
        classes = random.integers(1, num_classes + 1, count)
        # As of a segmentation: less than the box, so that some cross the bounds 32² and 96².
        areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) * random.uniform(0.2, 1, count)
        truths.append(
            image(
                source_id,
                boxes,
                [CLASSES.name(class_id) for class_id in classes],
                crowd=random.random(count) < 0.2,
                area=None if source_id == "z" else areas,
            )
        )
        of = random.integers(0, count, 12) if count else np.zeros(0, int)
        near, near_classes = boxes[of] + random.normal(0, 4, (len(of), 4)), classes[of]
        corners = random.uniform(0, [200, 300], (10, 2))
        far = np.concatenate([corners, corners + random.uniform(10, 120, (10, 2))], axis=1)
        scores = np.sort(random.random(len(near) + 10))[::-1]
        order = random.permutation(len(scores))
        all_classes = np.append(near_classes, random.integers(1, num_classes + 1, 10))
        detections[source_id] = found(np.concatenate([near, far])[order], scores, all_classes[order])
    return truths, detections


def reference(truths, detections):
    """pycocotools' 12 numbers, None for -1; the annotations are written out anew, ids in another order."""
    image_ids = {truth.source_id: 100 - number for number, truth in enumerate(truths)}
    annotations, results = [], []
    for truth in truths:
        ignored = truth.crowd | truth.difficult
        for index, (top, left, bottom, right) in enumerate(truth.boxes.tolist()):
            height, width = bottom - top, right - left
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_ids[truth.source_id],
                    "category_id": CLASSES.source_ids[CLASSES.id(truth.names[index]) - 1],
                    "bbox": [left, top, width, height],
                    "area": height * width if truth.area is None else float(truth.area[index]),
                    "iscrowd": int(ignored[index]),
                }
            )
    for source_id, item in detections.items():
        rows = zip(item.boxes.tolist(), item.scores.tolist(), item.classes.tolist(), strict=True)
        for (left, top, right, bottom), score, class_id in rows:
            results.append(
                {
                    "image_id": image_ids[source_id],
                    "category_id": CLASSES.source_ids[class_id - 1],
                    "bbox": [left, top, right - left, bottom - top],
                    "score": score,
                }
            )
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO()
        ground_truth.dataset = {
            "images": [{"id": number} for number in image_ids.values()],
            "categories": [{"id": number} for number in CLASSES.source_ids],
            "annotations": annotations,
        }
        ground_truth.createIndex()
        evaluator = COCOeval(ground_truth, ground_truth.loadRes(results), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    per_class = [
        values[values > -1].mean() if (values > -1).any() else None
        for values in np.moveaxis(evaluator.eval["precision"][..., 0, 2], 2, 0)
    ]
    return [None if value == -1 else value for value in evaluator.stats], per_class


def assert_equal(truths, detections):
    expected, per_class = reference(truths, detections)
    result = coco.evaluate(truths, detections, CLASSES)
    numbers = [result[name] for name in coco.NUMBERS]
    assert numbers == [value if value is None else pytest.approx(value, abs=1e-9) for value in expected]
    assert result["mAP"] == result["AP"]
    assert list(result["per_class"]) == list(CLASSES.names)
    assert list(result["per_class"].values()) == [
        value if value is None else pytest.approx(value, abs=1e-9) for value in per_class
    ]
    return result


@pytest.mark.parametrize("seed", range(12))
def test_all_numbers_equal_pycocotools(seed):
    result = assert_equal(*random_case(seed))
    assert result["per_class"]["zebra"] is None
    # The case is worth comparing: objects of every size are there, neither all nor none found.
    assert all(0 < result[name] < 1 for name in ("AP", "AP50", "APs", "APm", "APl", "AR1", "AR100"))


def test_more_detections_than_count_equal_pycocotools():
    # 300 of one class in one image: only the best 100 count, and some of the objects lie beyond them.
    random = np.random.default_rng(5)
    corners = random.uniform(0, 300, (300, 2))
    boxes = np.concatenate([corners, corners + random.uniform(20, 90, (300, 2))], axis=1)
    scores = np.sort(random.random(300))[::-1]
    detections = {"a": found(boxes + random.normal(0, 2, (300, 4)), scores)}
    result = assert_equal([image("a", boxes[::20])], detections)
    assert 0 < result["AR100"] < 0.5


def test_difficult_objects_equal_crowds_of_pycocotools():
    truths, detections = random_case(3)
    difficult = [dataclasses.replace(truth, difficult=truth.crowd, crowd=()) for truth in truths]
    assert assert_equal(difficult, detections) == coco.evaluate(truths, detections, CLASSES)


def test_detections_of_an_ignored_object_are_not_wrong():
    # Twice the crowd, then the object: it is the first that counts.
    boxes = [[0, 0, 50, 50], [100, 100, 150, 150]]
    truths = [image("a", boxes, crowd=[True, False])]
    result = coco.evaluate(truths, {"a": found([boxes[0], boxes[0], boxes[1]], [0.9, 0.8, 0.7])}, CLASSES)
    assert result["mAP"] == 1.0 and result["AR1"] == 0.0 and result["AR10"] == 1.0


def test_sizes_go_by_the_annotated_area():
    box, detections = [[0, 0, 40, 40]], {"a": found([[0, 0, 40, 40]], [0.9])}
    sizes = ("APs", "APm", "APl", "ARs", "ARm", "ARl")
    # 1,000 pixels of a segmentation are less than 32² = 1,024: small. The box's 1,600 are medium.
    small = coco.evaluate([image("a", box, area=np.array([1000.0]))], detections, CLASSES)
    assert [small[name] for name in sizes] == [1.0, None, None, 1.0, None, None]
    medium = coco.evaluate([image("a", box)], detections, CLASSES)
    assert [medium[name] for name in sizes] == [None, 1.0, None, None, 1.0, None]


def test_ap_by_hand():
    result = coco.evaluate([image("a", [[0, 0, 10, 10]])], {"a": found([[0, 0, 10, 7.7]], [0.9])}, CLASSES)
    # IoU .77: a match at .5 .55 .6 .65 .7 .75, 6 of 10.
    assert result["AP"] == pytest.approx(0.6, abs=1e-9) and result["AP50"] == result["AP75"] == 1.0


NONE = dict.fromkeys(coco.NUMBERS)
# One object of 100 pixels: small. There is nothing medium or large.
ZERO = {**dict.fromkeys(coco.NUMBERS, 0.0), "APm": None, "APl": None, "ARm": None, "ARl": None}


@pytest.mark.parametrize(
    ("truths", "detections", "numbers", "cat"),
    [
        pytest.param([image("a", [[0, 0, 10, 10]])], {}, ZERO, 0.0, id="no entry"),
        pytest.param([image("a", [[0, 0, 10, 10]])], {"a": EMPTY}, ZERO, 0.0, id="no detections"),
        pytest.param([image("a", [])], {"a": found([[0, 0, 9, 9]], [0.5])}, NONE, None, id="no objects"),
        pytest.param(
            [image("a", [[0, 0, 10, 10]], difficult=[True])],
            {"a": found([[0, 0, 9, 9]], [0.5])},
            NONE,
            None,
            id="difficult only",
        ),
        pytest.param([], {}, NONE, None, id="empty split"),
    ],
)
def test_where_nothing_is_to_be_counted_there_is_none(truths, detections, numbers, cat):
    result = coco.evaluate(truths, detections, CLASSES)
    assert {name: result[name] for name in coco.NUMBERS} == numbers
    assert result["mAP"] == numbers["AP"]
    assert result["per_class"] == {"cat": cat, "dog": None, "zebra": None}
    json.dumps(result, allow_nan=False)


def test_the_order_of_images_changes_nothing_even_with_equal_scores():
    truths, detections = random_case(8)
    detections = {
        source_id: Detections(item.boxes, np.round(item.scores, 1), item.classes)
        for source_id, item in detections.items()
    }
    expected = coco.evaluate(truths, detections, CLASSES)
    backwards = dict(reversed(detections.items()))
    assert coco.evaluate(truths[::-1], backwards, CLASSES) == expected


def test_it_names_the_library_and_prints_nothing(capfd, caplog):
    caplog.set_level(logging.DEBUG)
    result = coco.evaluate(*random_case(0), CLASSES)
    assert capfd.readouterr() == ("", "") and caplog.records == []
    name, version = result["implementation"].split()
    assert name == "faster-coco-eval" and int(version.split(".")[0]) >= 1


def test_an_unknown_image_is_named():
    with pytest.raises(DataError, match=r"detections for an unknown image id: 43$"):
        coco.evaluate([image("42", [[0, 0, 9, 9]])], {"43": EMPTY}, CLASSES)


def test_ties_between_images_follow_the_numbers_not_their_digits():
    """Image 9 comes before image 10, as in pycocotools: its wrong detection of the same score counts first."""
    truths = [image("10", [[10, 10, 50, 50]]), image("9", [[10, 10, 50, 50]])]
    detections = {"9": found([[200, 200, 240, 240]], [0.9]), "10": found([[10, 10, 50, 50]], [0.9])}
    ours = coco.evaluate(truths, detections, CLASSES)
    # One right after one wrong: precision 1/2 up to recall 1/2, which 51 of the 101 points reach.
    assert ours["AP50"] == pytest.approx(0.5 * 51 / 101, abs=1e-12)


def test_area_bounds_are_not_blurred_by_corners():
    """32 x 32 is both small and medium, at any place; (x + 32) - x is 32.000000000000004 at some."""
    places = np.random.default_rng(0).uniform(0, 300, 1000)
    blurred = places[(places + 32) - places > 32][:5]
    assert len(blurred) == 5
    for place in blurred:
        numbers = coco.evaluate([image("1", [[place, place, place + 32, place + 32]])], {}, CLASSES)
        assert (numbers["ARs"], numbers["ARm"], numbers["ARl"]) == (0.0, 0.0, None)
