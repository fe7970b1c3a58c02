"""VOC average precision: cases worked out by hand, a slow and literal reference, and properties."""

import json
from fractions import Fraction

import numpy as np
import pytest
from evaluation_cases import CAT, CLASSES, DOG, NOWHERE, A, B, C, found, image

from ssd_tf.errors import DataError
from ssd_tf.evaluation import voc
from ssd_tf.structures import Detections


def averages(truths, detections):
    """(11-point AP, area AP) of the cats."""
    eleven = voc.evaluate(truths, detections, CLASSES, use_07_metric=True)
    area = voc.evaluate(truths, detections, CLASSES, use_07_metric=False)
    return eleven["per_class"]["cat"], area["per_class"]["cat"]


def test_the_two_averages_differ_on_one_curve():
    # Right, wrong, right of 4 objects: recall 1/4 1/4 2/4, precision 1 1/2 2/3.
    recalls, precisions = np.array([0.25, 0.25, 0.5]), np.array([1, 1 / 2, 2 / 3])
    # Recall >= 0 .1 .2: 1; >= .3 .4 .5: 2/3; the other five: 0. (3 + 3 * 2/3) / 11.
    assert voc.average_precision_11_point(recalls, precisions) == pytest.approx(5 / 11, abs=1e-12)
    # 1/4 at precision 1, another 1/4 at 2/3.
    assert voc.average_precision_area(recalls, precisions) == pytest.approx(1 / 4 + 1 / 6, abs=1e-12)


@pytest.mark.parametrize("num_right", range(11))
def test_a_recall_that_equals_a_level_reaches_it(num_right):
    # k of 10 found, all right: precision 1 at the levels 0 .. k/10, so (k + 1) / 11 (0 for none found).
    recalls, precisions = np.arange(1, num_right + 1) / 10, np.ones(num_right)
    expected = (num_right + 1) / 11 if num_right else 0.0
    assert voc.average_precision_11_point(recalls, precisions) == pytest.approx(expected, abs=1e-12)


def test_precision_counts_as_the_best_at_any_higher_recall():
    # Wrong, right, right of 2: precision 0 1/2 2/3, at recall 0 1/2 1; made monotone it is 2/3 throughout.
    recalls, precisions = np.array([0, 0.5, 1]), np.array([0, 1 / 2, 2 / 3])
    assert voc.average_precision_area(recalls, precisions) == pytest.approx(2 / 3, abs=1e-12)
    assert voc.average_precision_11_point(recalls, precisions) == pytest.approx(2 / 3, abs=1e-12)


def test_a_second_detection_of_an_object_is_wrong():
    # A, A again, B of the objects A, B: right wrong right, recall 1/2 1/2 1, precision 1 1/2 2/3.
    detections = {"a": found((A, 0.9), (A, 0.8), (B, 0.7))}
    # Levels 0 .. .5 (six) at 1, .6 .. 1 (five) at 2/3; area 1/2 * 1 + 1/2 * 2/3.
    expected = ((6 + 5 * 2 / 3) / 11, 5 / 6)
    assert averages([image("a", A, B)], detections) == pytest.approx(expected, abs=1e-12)


def test_the_better_detection_of_an_object_is_the_right_one_wherever_it_stands():
    # B at .7 follows A twice (.8 and .9): the same curve as above, though the array is not sorted.
    detections = {"a": found((B, 0.7), (A, 0.8), (A, 0.9))}
    assert averages([image("a", A, B)], detections)[1] == pytest.approx(5 / 6, abs=1e-12)


def test_a_taken_object_is_not_exchanged_for_the_second_nearest():
    # The second detection has IoU 100/110 with the first object, 110/140 with the other, still free one.
    # It belongs to the first and is wrong: right, wrong of 2 objects: area 1/2.
    near, other = (0, 0, 10, 10), (0, 0, 10, 14)
    detections = {"a": found((near, 0.9), ((0, 0, 10, 11), 0.8))}
    assert averages([image("a", near, other)], detections)[1] == pytest.approx(1 / 2, abs=1e-12)
    # The other way round it lies nearest to the free one: 130/140 against 100/130.
    detections = {"a": found((near, 0.9), ((0, 0, 10, 13), 0.8))}
    assert averages([image("a", near, other)], detections)[1] == 1.0


@pytest.mark.parametrize("flag", ["difficult", "crowd"])
def test_an_ignored_object_is_neither_to_be_found_nor_wrong_to_find(flag):
    truths = [image("a", A, B, **{flag: [False, True]})]
    # Twice B, then A: only A counts, and it is the first that counts.
    assert averages(truths, {"a": found((B, 0.9), (B, 0.8), (A, 0.7))}) == (1.0, 1.0)
    # A alone: B is not missed.
    assert averages(truths, {"a": found((A, 0.7))}) == (1.0, 1.0)
    # IoU 4/10 with B is no match, so it is wrong: wrong, right of 1: precision 1/2 at recall 1.
    missed_b = (20, 20, 30, 24)
    assert averages(truths, {"a": found((missed_b, 0.9), (A, 0.7))}) == (0.5, 0.5)


def test_a_detection_nearest_to_an_ignored_object_does_not_find_another():
    # IoU 100/110 with the difficult box, 110/140 with the ordinary one, which stays missed.
    truths = [image("a", (0, 0, 10, 10), (0, 0, 10, 14), difficult=[True, False])]
    assert averages(truths, {"a": found(((0, 0, 10, 11), 0.9))}) == (0.0, 0.0)


def test_iou_of_exactly_the_threshold_is_a_match():
    # 50 / 100 and 49 / 100.
    assert averages([image("a", A)], {"a": found(((0, 0, 10, 5), 0.9))}) == (1.0, 1.0)
    assert averages([image("a", A)], {"a": found(((0, 0, 10, 4.9), 0.9))}) == (0.0, 0.0)
    detections = {"a": found(((0, 0, 10, 5), 0.9))}
    stricter = voc.evaluate([image("a", A)], detections, CLASSES, False, iou_threshold=0.51)
    assert stricter["mAP"] == 0.0 and stricter["iou_threshold"] == 0.51


@pytest.mark.parametrize("reverse", [False, True])
def test_equal_scores_go_by_image_id_whatever_the_order_of_images(reverse):
    def evaluate(wrong, right):
        truths = [image("a", A), image("b", A, B)]
        detections = {wrong: found((NOWHERE, 0.5)), right: found((A, 0.5))}
        if reverse:
            truths, detections = truths[::-1], dict(reversed(detections.items()))
        return averages(truths, detections)[1]

    # Wrong before right: precision 1/2 at recall 1/3. Right before wrong: precision 1.
    assert evaluate(wrong="a", right="b") == pytest.approx(1 / 6, abs=1e-12)
    assert evaluate(wrong="b", right="a") == pytest.approx(1 / 3, abs=1e-12)


def test_equal_scores_of_one_image_go_by_their_place():
    assert averages([image("a", A)], {"a": found((NOWHERE, 0.5), (A, 0.5))})[1] == 0.5
    assert averages([image("a", A)], {"a": found((A, 0.5), (NOWHERE, 0.5))})[1] == 1.0


def test_objects_of_other_classes_and_images_are_not_matched():
    truths = [image("a", A, names=["dog"]), image("b", B)]
    # A cat where the dog is, and image b's box in image a: both wrong.
    assert averages(truths, {"a": found((A, 0.9), (B, 0.8))}) == (0.0, 0.0)


def test_a_class_without_ground_truth_is_left_out_of_the_mean():
    # Cats: right of 2, area 1/2, levels 0 .. .5 of 11. Dogs: detected but nowhere annotated.
    truths, detections = [image("a", A, B)], {"a": found((A, 0.9), (C, 0.8, DOG))}
    result = voc.evaluate(truths, detections, CLASSES, use_07_metric=False)
    assert result["per_class"] == {"cat": 0.5, "dog": None}
    assert result["mAP"] == result["mAP_area"] == 0.5
    assert result["mAP_11_point"] == pytest.approx(6 / 11, abs=1e-12)
    result = voc.evaluate(truths, detections, CLASSES, use_07_metric=True)
    assert result["mAP"] == result["per_class"]["cat"] == pytest.approx(6 / 11, abs=1e-12)


def test_the_mean_is_over_classes_not_objects():
    # Cats: 1 of 1 found. Dogs: 0 of 3.
    truths = [image("a", A, B, C, NOWHERE, names=["cat", "dog", "dog", "dog"])]
    result = voc.evaluate(truths, {"a": found((A, 0.9))}, CLASSES, use_07_metric=False)
    assert result["per_class"] == {"cat": 1.0, "dog": 0.0} and result["mAP"] == 0.5


NOTHING = {"cat": None, "dog": None}


@pytest.mark.parametrize(
    ("truths", "detections", "per_class", "mean"),
    [
        pytest.param([image("a", A)], {}, {"cat": 0.0, "dog": None}, 0.0, id="no entry"),
        pytest.param([image("a", A)], {"a": found()}, {"cat": 0.0, "dog": None}, 0.0, id="no detections"),
        pytest.param([image("a", A, crowd=[True])], {"a": found((A, 0.9))}, NOTHING, None, id="crowd only"),
        pytest.param([image("a", A, difficult=[1])], {}, NOTHING, None, id="difficult only"),
        pytest.param([image("a")], {"a": found((A, 0.9))}, NOTHING, None, id="no objects"),
        pytest.param([], {}, NOTHING, None, id="empty split"),
    ],
)
@pytest.mark.parametrize("use_07_metric", [False, True])
def test_where_nothing_is_to_be_counted_there_is_no_nan(truths, detections, per_class, mean, use_07_metric):
    result = voc.evaluate(truths, detections, CLASSES, use_07_metric)
    assert result["per_class"] == per_class
    assert result["mAP"] == result["mAP_area"] == result["mAP_11_point"] == mean
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize(
    ("truths", "detections", "message"),
    [
        ([image("a", A)], {"z9": found((A, 0.9))}, r"detections for an unknown image id: z9$"),
        (
            [image("a", A)],
            {"z": found(), "y": found()},
            r"detections for an unknown image id: y \(and 1 more\)$",
        ),
        ([image("a", A), image("a", B)], {}, r"image id a stands twice in the data set$"),
        (
            [image("a", A, names=["catt"])],
            {},
            r"unknown class 'catt' \(did you mean cat\?\): image a$",
        ),
        ([image("a", A)], {"a": found((A, 0.9, 3))}, r"class id 3 is not in 1\.\.2: image a$"),
        ([image("a", A)], {"a": found((A, 0.9, 0))}, r"class id 0 is not in 1\.\.2: image a$"),
        (
            [image("0", A), image("a", A)],
            {"a": found((A, np.nan))},
            r"a detection's box or score is not a finite number: image a$",
        ),
        (
            [image("a", A)],
            {"a": found(((0, 0, np.inf, 1), 0.5))},
            r"a detection's box or score is not a finite number: image a$",
        ),
    ],
)
def test_what_cannot_be_scored_is_named(truths, detections, message):
    with pytest.raises(DataError, match=message):
        voc.evaluate(truths, detections, CLASSES, use_07_metric=True)


def random_case(seed):
    """Images of few small integer boxes and few score levels: IoUs of exactly .5 and equal scores abound."""
    random = np.random.default_rng(seed)
    truths, detections = [], {}
    for source_id in random.permutation(["10", "9", "b", "a", "x y", "é"]):
        num_truths, num_found = random.integers(0, 5), random.integers(0, 9)
        names = [CLASSES.names[index] for index in random.integers(0, 2, num_truths)]
        flags = random.random((2, num_truths)) < 0.2
        boxes = _random_boxes(random, num_truths)
        truths.append(image(source_id, *boxes, names=names, difficult=flags[0], crowd=flags[1]))
        scores = np.sort(random.integers(1, 5, num_found) / 4)[::-1]
        rows = zip(_random_boxes(random, num_found), scores, random.integers(1, 3, num_found), strict=True)
        if random.random() < 0.9:
            detections[source_id] = found(*rows)
    return truths, detections


def _random_boxes(random, count):
    corners, sides = random.integers(0, 3, (count, 2)), random.integers(2, 6, (count, 2))
    return np.concatenate([corners, corners + sides], axis=1)


def reference(truths, detections, class_id):
    """The rules of the development kit word by word, in whole numbers; (11-point, area) or None."""
    objects = {
        truth.source_id: [
            (box, bool(difficult or crowd))
            for box, name, difficult, crowd in zip(
                truth.boxes.astype(int).tolist(), truth.names, truth.difficult, truth.crowd, strict=True
            )
            if CLASSES.id(name) == class_id
        ]
        for truth in truths
    }
    num_objects = sum(not ignored for rows in objects.values() for _, ignored in rows)
    if not num_objects:
        return None
    rows = [
        (
            -float(score),
            (not source_id.isdigit(), int(source_id) if source_id.isdigit() else 0),
            source_id,
            rank,
            box.astype(int)[[1, 0, 3, 2]].tolist(),
        )
        for source_id, item in detections.items()
        for rank, (box, score, found_class) in enumerate(zip(item.boxes, item.scores, item.classes))
        if found_class == class_id
    ]
    taken, num_right, num_wrong, curve = set(), 0, 0, []
    for _, _, source_id, _, box in sorted(rows):
        overlaps = [_exact_iou(box, other) for other, _ in objects[source_id]]
        best = max(range(len(overlaps)), key=lambda index: overlaps[index], default=None)
        if best is not None and overlaps[best] >= Fraction(1, 2):
            if objects[source_id][best][1]:
                continue
            num_right += (source_id, best) not in taken
            num_wrong += (source_id, best) in taken
            taken.add((source_id, best))
        else:
            num_wrong += 1
        curve.append((Fraction(num_right, num_objects), Fraction(num_right, num_right + num_wrong)))
    levels = [max((p for r, p in curve if r >= Fraction(k, 10)), default=Fraction(0)) for k in range(11)]
    area, reached = Fraction(0), Fraction(0)
    for recall in sorted({recall for recall, _ in curve}):
        area += (recall - reached) * max(p for r, p in curve if r >= recall)
        reached = recall
    return float(sum(levels) / 11), float(area)


def _exact_iou(a, b):
    height, width = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(height, 0) * max(width, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return Fraction(shared, sum(areas) - shared)


@pytest.mark.parametrize("seed", range(60))
def test_random_cases_equal_the_reference(seed):
    truths, detections = random_case(seed)
    eleven = voc.evaluate(truths, detections, CLASSES, use_07_metric=True)["per_class"]
    area = voc.evaluate(truths, detections, CLASSES, use_07_metric=False)["per_class"]
    for class_id, name in enumerate(CLASSES.names, 1):
        expected = reference(truths, detections, class_id)
        if expected is None:
            assert eleven[name] is area[name] is None
        else:
            assert (eleven[name], area[name]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_the_order_of_images_changes_nothing(seed):
    truths, detections = random_case(seed)
    random = np.random.default_rng(seed)
    shuffled = [truths[index] for index in random.permutation(len(truths))]
    entries = list(detections.items())
    others = dict(entries[index] for index in random.permutation(len(entries)))
    expected = voc.evaluate(truths, detections, CLASSES, use_07_metric=False)
    assert voc.evaluate(shuffled, others, CLASSES, use_07_metric=False) == expected


@pytest.mark.parametrize("use_07_metric", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_a_further_wrong_detection_never_raises_an_average(seed, use_07_metric):
    truths, detections = random_case(seed)
    before = voc.evaluate(truths, detections, CLASSES, use_07_metric)["per_class"]
    for source_id, item in detections.items():
        for score in (0.1, 0.25, 0.6, 1.0):
            more = Detections(
                np.concatenate([item.boxes, np.array([[80, 80, 90, 90]], np.float32)]),
                np.append(item.scores, np.float32(score)),
                np.append(item.classes, np.int32(CAT)),
            )
            after = voc.evaluate(truths, {**detections, source_id: more}, CLASSES, use_07_metric)["per_class"]
            assert after["dog"] == before["dog"]
            assert after["cat"] is before["cat"] is None or after["cat"] <= before["cat"]


@pytest.mark.parametrize("use_07_metric", [False, True])
def test_every_object_found_and_nothing_else_gives_one(use_07_metric):
    random = np.random.default_rng(0)
    truths, detections = [], {}
    for number in range(7):
        # Apart from one another, so that none is nearest to two detections.
        corners = random.permutation(12)[:5, None] * 20 + random.uniform(0, 8, (5, 2))
        boxes = np.concatenate([corners, corners + random.uniform(3, 12, (5, 2))], axis=1)
        classes = random.integers(1, 3, 5)
        truths.append(image(str(number), *boxes, names=[CLASSES.name(class_id) for class_id in classes]))
        scores = np.sort(random.random(5))[::-1]
        detections[str(number)] = found(*zip(boxes, scores, classes, strict=True))
    result = voc.evaluate(truths, detections, CLASSES, use_07_metric)
    assert result["per_class"] == {"cat": pytest.approx(1.0, abs=1e-12), "dog": pytest.approx(1.0, abs=1e-12)}
    assert result["mAP"] == pytest.approx(1.0, abs=1e-12)
