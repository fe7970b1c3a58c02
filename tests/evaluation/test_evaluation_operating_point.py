"""The score threshold of the best F1: worked out by hand, and against every threshold tried one by one."""

from fractions import Fraction

import numpy as np
import pytest
from evaluation_cases import CAT, CLASSES, DOG, NOWHERE, A, B, C, found, image

from ssd_tf.errors import DataError
from ssd_tf.evaluation import operating_point
from ssd_tf.structures import LabelMap


def point(threshold, f1, precision, recall):
    return pytest.approx({"threshold": threshold, "f1": f1, "precision": precision, "recall": recall}, abs=1e-12)


def cats(truths, detections):
    return operating_point.evaluate(truths, detections, CLASSES)["best_f1_per_class"]["cat"]


def test_one_curve_by_hand():
    # Right wrong right wrong of 3 objects: F1 = 2 * right / (kept + 3) = 2/4, 2/5, 4/6, 4/7.
    detections = {"a": found((A, 0.875), (NOWHERE, 0.75), (B, 0.5), (NOWHERE, 0.25))}
    assert cats([image("a", A, B, C)], detections) == point(0.5, 2 / 3, 2 / 3, 2 / 3)


def test_of_equal_f1_the_highest_threshold():
    # Right wrong wrong right of 2 objects: 2/3, 2/4, 2/5, 4/6: the first and the last are equal.
    detections = {"a": found((A, 0.875), (NOWHERE, 0.75), (NOWHERE, 0.5), (B, 0.25))}
    assert cats([image("a", A, B)], detections) == point(0.875, 2 / 3, 1.0, 0.5)


def test_detections_of_equal_score_are_kept_together():
    # Alone the right one would have F1 1; with the wrong one of the same score it is 2/3.
    detections = {"a": found((A, 0.5), (NOWHERE, 0.5))}
    assert cats([image("a", A)], detections) == point(0.5, 2 / 3, 1 / 2, 1.0)


@pytest.mark.parametrize("flag", ["difficult", "crowd"])
def test_ignored_objects_are_neither_right_nor_wrong(flag):
    truths = [image("a", A, B, **{flag: [False, True]})]
    # The two on B do not count: A is found alone, and all is right.
    detections = {"a": found((B, 0.875), (B, 0.75), (A, 0.5))}
    assert cats(truths, detections) == point(0.5, 1.0, 1.0, 1.0)


def test_a_second_detection_of_an_object_is_wrong():
    detections = {"a": found((A, 0.875), (A, 0.75), (B, 0.5))}
    # 2/3, 2/4, 4/5.
    assert cats([image("a", A, B)], detections) == point(0.5, 4 / 5, 2 / 3, 1.0)


def test_a_match_has_an_iou_of_one_half():
    # 50 / 100 and 49 / 100.
    assert cats([image("a", A)], {"a": found(((0, 0, 10, 5), 0.5))})["f1"] == 1.0
    assert cats([image("a", A)], {"a": found(((0, 0, 10, 4.9), 0.5))})["f1"] == 0.0


def test_all_classes_share_one_threshold():
    truths = [image("a", A, B, names=["cat", "dog"])]
    detections = {"a": found((A, 0.875, CAT), (NOWHERE, 0.75, CAT), (B, 0.5, DOG), (NOWHERE, 0.25, DOG))}
    result = operating_point.evaluate(truths, detections, CLASSES)
    assert result["best_f1_per_class"] == {"cat": point(0.875, 1.0, 1.0, 1.0), "dog": point(0.5, 1.0, 1.0, 1.0)}
    # Together right wrong right wrong of 2: 2/3, 2/4, 4/5, 4/6.
    assert result["best_f1"] == point(0.5, 4 / 5, 2 / 3, 1.0)


def test_detections_of_a_class_without_objects_are_wrong_for_all_together():
    truths = [image("a", A, names=["cat"])]
    detections = {"a": found((B, 0.875, DOG), (A, 0.75, CAT))}
    result = operating_point.evaluate(truths, detections, CLASSES)
    assert result["best_f1_per_class"] == {"cat": point(0.75, 1.0, 1.0, 1.0), "dog": None}
    assert result["best_f1"] == point(0.75, 2 / 3, 1 / 2, 1.0)


@pytest.mark.parametrize("detections", [{}, {"a": found((NOWHERE, 0.9))}])
def test_nothing_right_has_no_threshold(detections):
    nothing = {"threshold": None, "f1": 0.0, "precision": 0.0, "recall": 0.0}
    assert operating_point.evaluate([image("a", A)], detections, CLASSES) == {
        "best_f1": nothing,
        "best_f1_per_class": {"cat": nothing, "dog": None},
    }


def test_without_objects_there_is_no_best():
    detections = {"a": found((A, 0.9))}
    for classes in (CLASSES, LabelMap(("cat",))):
        result = operating_point.evaluate([image("a")], detections, classes)
        assert result == {"best_f1": None, "best_f1_per_class": dict.fromkeys(classes.names)}
    assert operating_point.evaluate([], {}, LabelMap(())) == {"best_f1": None, "best_f1_per_class": {}}


def test_unknown_images_are_refused():
    with pytest.raises(DataError, match="unknown image id: b"):
        operating_point.evaluate([image("a", A)], {"b": found((A, 0.9))}, CLASSES)


def tried_thresholds(truths, detections, classes):
    """(F1 as a fraction, threshold) of every threshold, counted image by image with plain loops."""
    scores = {float(score) for item in detections.values() for score in item.scores}
    for threshold in sorted(scores, reverse=True):
        right = kept = wanted = 0
        for class_id in classes:
            counts = count_class(truths, detections, class_id, threshold)
            right, kept, wanted = (total + part for total, part in zip((right, kept, wanted), counts))
        if wanted and right:
            yield Fraction(2 * right, kept + wanted), threshold, Fraction(right, kept), Fraction(right, wanted)


def count_class(truths, detections, class_id, threshold):
    """(right, kept without those on ignored objects, objects) of one class by VOC's rules."""
    right = kept = wanted = 0
    for truth in truths:
        name = CLASSES.name(class_id)
        rows = [i for i, other in enumerate(truth.names) if other == name]
        boxes, ignored = truth.boxes[rows], (truth.difficult | truth.crowd)[rows]
        wanted += int((~ignored).sum())
        item, taken = detections.get(truth.source_id, found()), set()
        order = sorted(range(len(item)), key=lambda i: -item.scores[i])
        for i in (i for i in order if item.classes[i] == class_id and item.scores[i] >= threshold):
            overlaps = [overlap(item.boxes[i].astype(float)[[1, 0, 3, 2]], box) for box in boxes]
            nearest = max(range(len(boxes)), key=lambda k: overlaps[k]) if len(boxes) else None
            if nearest is None or overlaps[nearest] < 0.5:
                kept += 1
            elif not ignored[nearest]:
                kept += 1
                right += nearest not in taken
                taken.add(nearest)
    return right, kept, wanted


def overlap(a, b):
    height, width = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(height, 0) * max(width, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return shared / (sum(areas) - shared)


def random_scene(seed):
    """Truths and detections on a coarse raster, so that many overlap; scores with ties, two classes."""
    rng = np.random.default_rng(seed)

    def boxes(count):
        corners = rng.integers(0, 6, (count, 2)) * 4
        return np.concatenate([corners, corners + rng.integers(2, 5, (count, 2)) * 4], axis=1).astype(float)

    truths, detections = [], {}
    for index in range(4):
        count = int(rng.integers(0, 5))
        names = [CLASSES.names[k] for k in rng.integers(0, 2, count)]
        truths.append(image(str(index), *boxes(count), names=names, difficult=rng.random(count) < 0.2))
        rows = boxes(8)
        for row, truth in zip(rows, truths[-1].boxes):  # some are right
            row[:] = truth + rng.integers(-1, 2, 4)
        scores = rng.integers(1, 17, 8) / 16
        detections[str(index)] = found(*zip(rows, scores, rng.integers(1, 3, 8)))
    return truths, detections


@pytest.mark.parametrize("seed", range(25))
def test_every_threshold_tried(seed):
    truths, detections = random_scene(seed)
    result = operating_point.evaluate(truths, detections, CLASSES)
    cases = [((CAT, DOG), result["best_f1"])]
    cases += [((class_id,), result["best_f1_per_class"][CLASSES.name(class_id)]) for class_id in (CAT, DOG)]
    for classes, got in cases:
        tried = list(tried_thresholds(truths, detections, classes))
        if not tried:
            assert got is None or got["threshold"] is None
            continue
        best, threshold, precision, recall = max(tried, key=lambda row: row[:2])
        assert got == point(threshold, float(best), float(precision), float(recall))
