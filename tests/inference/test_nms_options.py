"""Hard, DIoU- and Soft-NMS, class-wise and over all classes, against a plain greedy loop and by hand."""

import functools
import itertools

import nms_cases
import numpy as np
import pytest
import tensorflow as tf

from ssd_tf.inference import nms

FORMS = {False: nms.class_wise_nms, True: nms.class_agnostic_nms}
OPTIONS = list(itertools.product(nms.METHODS, FORMS))
NAMES = ("score_threshold", "nms_iou", "topk_candidates", "max_detections")


def form(method, agnostic, **options):
    """The function that suppresses by a method, class-wise or over all classes."""
    return functools.partial(FORMS[agnostic], method=method, **options)


def run(method, agnostic, boxes, scores, settings, **options):
    return [np.asarray(x) for x in form(method, agnostic, **options)(boxes, scores, *settings)]


def check(method, agnostic, boxes, scores, settings, all_pairs=False):
    function = form(method, agnostic)
    return nms_cases.check(function, boxes, scores, settings, method, agnostic, all_pairs=all_pairs)


few_boxes = functools.partial(nms_cases.random_boxes, batch=2, count=60, classes=3)


@pytest.mark.parametrize(("method", "agnostic"), OPTIONS)
@pytest.mark.parametrize("seed", range(3))
def test_random_boxes(method, agnostic, seed):
    boxes, scores = few_boxes(seed)
    assert max(check(method, agnostic, boxes, scores, (0.3, 0.3, 400, 200))) < 60 * 3 * 0.7  # some go
    assert check(method, agnostic, boxes, scores, (0.1, 0.3, 400, 7)) == [7, 7]
    few = check(method, agnostic, boxes, scores, (0.05, 0.3, 6, 50))
    assert max(few) <= (6 if agnostic else 18)


@pytest.mark.parametrize(("method", "agnostic"), OPTIONS)
def test_ties(method, agnostic):
    boxes, scores = few_boxes(4, levels=3)
    check(method, agnostic, boxes, scores, (0.3, 0.4, 400, 40))
    check(method, agnostic, boxes, scores, (0.3, 0.4, 12, 40))


@pytest.mark.parametrize(("method", "agnostic"), OPTIONS)
def test_no_candidates(method, agnostic):
    boxes, scores = few_boxes(5)
    scores[0] *= 0.1
    counts = check(method, agnostic, boxes, scores, (0.5, 0.45, 50, 20))
    assert counts[0] == 0 < counts[1]
    assert check(method, agnostic, boxes, scores * 0, (0.0, 0.45, 50, 20)) == [0, 0]


@pytest.mark.parametrize(("method", "agnostic"), OPTIONS)
def test_one_box_many_times(method, agnostic):
    """Of equal boxes one stays in each class, or in all; Gaussian decay at IoU 1 leaves exp(-2) of a score."""
    _, scores = few_boxes(6, count=8)
    boxes = np.broadcast_to(np.float32([0.1, 0.2, 0.6, 0.9]), (2, 8, 4))
    counts = check(method, agnostic, boxes, scores, (0.2, 0.45, 50, 20))
    assert counts == [1 if agnostic else 3] * 2
    more = check(method, agnostic, boxes, scores, (0.1, 0.45, 50, 20))
    assert (more != counts) == (method == "soft_gaussian")


@pytest.mark.parametrize(("method", "agnostic"), OPTIONS)
def test_one_box_one_class(method, agnostic):
    boxes, scores = np.float32([[[0, 0, 1, 1]]]), np.float32([[[0.75]]])
    assert check(method, agnostic, boxes, scores, (0.5, 0.5, 400, 3)) == [1]
    assert check(method, agnostic, boxes, scores, (0.75, 0.5, 400, 3)) == [0]


@pytest.mark.parametrize("method", ["hard", "diou", "soft_linear"])
@pytest.mark.parametrize("seed", range(3))
def test_boxes_competing_by_their_best_class_is_all_pairs_competing(method, seed):
    boxes, scores = few_boxes(seed, count=40, levels=20 if seed else None)
    for nms_iou in (0.0, 0.45, 0.99):
        settings = (0.2, nms_iou, 400, 60)
        assert 0 < max(check(method, True, boxes, scores, settings, all_pairs=True)) <= 40


@pytest.mark.parametrize("method", nms.METHODS)
def test_a_box_has_one_label_whatever_the_threshold(method):
    """Equal, empty or kept by nms_iou = 1: the class of a box is its best, the first of equal ones."""
    boxes = np.float32([[[0, 0, 0.1, 0.1], [0.5, 0.5, 0.5, 0.5], [0.8, 0.8, 0.9, 0.9]]])
    scores = np.float32([[[0.5, 0.6, 0.9], [0.1, 0.8, 0.8], [0.7, 0.6, 0.6]]])
    _, kept_scores, classes, counts = run(method, True, boxes, scores, (0.01, 1.0, 10, 4))
    assert counts.tolist() == [3]
    assert classes.tolist() == [[2, 1, 0, 0]]
    np.testing.assert_allclose(kept_scores, [[0.9, 0.8, 0.7, 0]], rtol=1e-6)


def test_classes_suppress_each_other_and_labels_follow_their_boxes():
    """The second box overlaps the first by .9 and goes, though of another class; the third is apart."""
    boxes = np.float32([[[0, 0, 1, 1], [0, 0, 1, 0.9], [0, 2, 1, 3]]])
    scores = np.float32([[[0.6, 0.1, 0.9], [0.2, 0.8, 0.7], [0.3, 0.75, 0.4]]])
    kept_boxes, kept_scores, classes, counts = run("hard", True, boxes, scores, (0.1, 0.45, 10, 5))
    assert counts.tolist() == [2]
    assert classes[0].tolist() == [2, 1, 0, 0, 0]
    assert np.array_equal(kept_scores[0, :2], np.float32([0.9, 0.75]))
    assert np.array_equal(kept_boxes[0, :2], boxes[0, [0, 2]])


# Three boxes of one class: IoU of the first with the others 1/2 and 3/4, of these 1/4.
THREE = np.float32([[[0, 0, 1, 1], [0, 0, 0.5, 1], [0.25, 0, 1, 1]]])
THREE_SCORES = np.float32([[[0.9], [0.6], [0.8]]])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # .6 exp(-.25 / .5); .8 exp(-.5625 / .5) exp(-.0625 / .5): the third falls behind the second.
        ((0.01, 0.45), [0.9, 0.3639184, 0.2292038]),
        ((0.01, 1.0), [0.9, 0.3639184, 0.2292038]),  # no part of nms_iou
        ((0.23, 0.45), [0.9, 0.3639184]),
        ((0.2292, 0.45), [0.9, 0.3639184, 0.2292038]),
        ((0.365, 0.45), [0.9]),
    ],
)
def test_gaussian_by_hand(settings, expected):
    boxes, scores, _, counts = run("soft_gaussian", False, THREE, THREE_SCORES, (*settings, 10, 3), sigma=0.5)
    assert counts.tolist() == [len(expected)]
    np.testing.assert_allclose(scores[0, : len(expected)], expected, rtol=1e-6)
    assert np.array_equal(boxes[0, : len(expected)], THREE[0, : len(expected)])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ((0.01, 0.3), [0.9, 0.6 * 0.5, 0.8 * 0.25]),
        ((0.01, 0.2), [0.9, 0.6 * 0.5, 0.8 * 0.25 * 0.75]),
        ((0.01, 0.5), [0.9, 0.6, 0.8 * 0.25]),  # 1/2 is not above
        ((0.01, 0.75), [0.9, 0.8, 0.6]),
        ((0.25, 0.3), [0.9, 0.3]),
    ],
)
def test_linear_by_hand(settings, expected):
    boxes, scores, _, counts = run("soft_linear", False, THREE, THREE_SCORES, (*settings, 10, 3))
    assert counts.tolist() == [len(expected)]
    np.testing.assert_allclose(scores[0, : len(expected)], expected, rtol=1e-6)
    order = [0, 2, 1] if expected[1] == 0.8 else [0, 1, 2]
    assert np.array_equal(boxes[0, : len(expected)], THREE[0, order[: len(expected)]])


def test_a_score_that_falls_to_the_threshold_goes():
    """.5 (1 - 1/2) is .25 exactly."""
    boxes, scores = THREE[:, :2], np.float32([[[0.75], [0.5]]])
    assert run("soft_linear", False, boxes, scores, (0.25, 0.4, 10, 3))[3].tolist() == [1]
    assert run("soft_linear", False, boxes, scores, (0.2499, 0.4, 10, 3))[3].tolist() == [2]


def test_diou_by_hand():
    """IoU 1/2; the centres are 1/4 apart in a box of diagonal^2 2: DIoU = 1/2 - (1/16) / 2 = 15/32."""
    boxes, scores = THREE[:, :2], np.float32([[[0.75], [0.5]]])
    for nms_iou, hard, diou in ((0.46, 1, 1), (15 / 32, 1, 2), (0.48, 1, 2), (0.5, 2, 2)):
        assert run("hard", False, boxes, scores, (0.1, nms_iou, 10, 3))[3].tolist() == [hard]
        assert run("diou", False, boxes, scores, (0.1, nms_iou, 10, 3))[3].tolist() == [diou]


@pytest.mark.parametrize(("method", "agnostic"), OPTIONS)
def test_boxes_that_are_no_numbers_lower_no_scores(method, agnostic):
    """What a diverged network gives must not hide the other boxes."""
    boxes = np.float32([[[np.nan] * 4, [0, 0, 0.4, 0.4], [0.6, 0.6, 1, 1]]])
    scores = np.float32([[[0.9], [0.8], [0.7]]])
    kept_boxes, kept_scores, _, counts = run(method, agnostic, boxes, scores, (0.1, 0.45, 10, 3))
    assert counts.tolist() == [3]
    assert np.array_equal(kept_scores, scores[..., 0])
    assert np.array_equal(kept_boxes, boxes, equal_nan=True)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 2.0])
def test_sigma_is_the_papers_and_tensorflows_is_half_of_it(sigma):
    boxes, scores = few_boxes(8, batch=1, count=80, classes=1)
    kept_boxes, kept_scores, _, counts = run(
        "soft_gaussian", False, boxes, scores, (0.1, 0.45, 400, 50), sigma=sigma
    )
    indices, expected = tf.image.non_max_suppression_with_scores(
        boxes[0], scores[0, :, 0], 50, iou_threshold=1.0, score_threshold=0.1, soft_nms_sigma=sigma / 2
    )
    assert counts[0] == len(indices) > 10
    np.testing.assert_allclose(kept_scores[0, : counts[0]], expected, rtol=1e-5)
    assert np.array_equal(kept_boxes[0, : counts[0]], boxes[0, indices.numpy()])


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize(("method", "agnostic"), OPTIONS)
def test_traced_and_compiled(method, agnostic, jit_compile):
    """With an open batch where it is only traced."""
    boxes, scores = few_boxes(9)
    batch = 2 if jit_compile else None
    settings = (0.2, 0.45, 40, 30)
    traced = tf.function(
        form(method, agnostic, **dict(zip(NAMES, settings, strict=True))),
        input_signature=[tf.TensorSpec([batch, 60, 4]), tf.TensorSpec([batch, 60, 3])],
        jit_compile=jit_compile,
    )
    expected = run(method, agnostic, boxes, scores, settings)
    assert min(expected[3]) > 5
    for first, second in zip(traced(boxes, scores), expected, strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-5)
