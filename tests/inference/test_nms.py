"""Both forms of hard class-wise suppression against a plain greedy loop."""

import functools

import nms_cases
import numpy as np
import pytest
import tensorflow as tf
from nms_cases import random_boxes

from ssd_tf.inference import nms, nms_tensorflow

FORMS = {"keras": nms.class_wise_nms, "combined": nms_tensorflow.class_wise_nms}


def check(form, boxes, scores, *settings):
    return nms_cases.check(FORMS[form], boxes, scores, settings)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(3))
def test_random_boxes(form, seed):
    boxes, scores = random_boxes(seed)
    counts = check(form, boxes, scores, 0.3, 0.45, 400, 60)
    assert counts == [60, 60, 60]
    assert max(check(form, boxes, scores, 0.9, 0.2, 400, 60)) < 48  # fewer than candidates: some are suppressed


@pytest.mark.parametrize("form", FORMS)
def test_more_candidates_than_are_looked_at(form):
    boxes, scores = random_boxes(7)
    few = check(form, boxes, scores, 0.01, 0.45, 10, 100)
    assert max(few) <= 40
    assert few != check(form, boxes, scores, 0.01, 0.45, 400, 100)


@pytest.mark.parametrize("form", FORMS)
def test_no_candidates(form):
    boxes, scores = random_boxes(1, batch=2)
    scores[0] *= 0.1
    assert check(form, boxes, scores, 0.5, 0.45, 50, 20)[0] == 0
    assert check(form, boxes, scores * 0, 0.5, 0.45, 50, 20) == [0, 0]


@pytest.mark.parametrize("form", FORMS)
def test_fewer_anchors_than_are_looked_at_or_kept(form):
    boxes, scores = random_boxes(2, count=5, classes=2)
    assert max(check(form, boxes, scores, 0.01, 0.45, 400, 200)) <= 10


@pytest.mark.parametrize("form", FORMS)
def test_one_class_one_anchor(form):
    boxes = np.float32([[[0.1, 0.2, 0.3, 0.4]]])
    assert check(form, boxes, np.float32([[[0.7]]]), 0.5, 0.5, 400, 3) == [1]


@pytest.mark.parametrize("form", FORMS)
def test_thresholds_are_strict(form):
    boxes = np.float32([[[0, 0, 1, 1], [0, 0, 0.5, 1]]])  # IoU 1/2 exactly
    scores = np.float32([[[0.75], [0.5]]])
    assert check(form, boxes, scores, 0.25, 0.5, 10, 10) == [2]
    assert check(form, boxes, scores, 0.25, 0.49, 10, 10) == [1]
    assert check(form, boxes, scores, 0.5, 0.5, 10, 10) == [1]
    assert check(form, boxes, scores, 0.49, 0.5, 10, 10) == [2]


@pytest.mark.parametrize("form", FORMS)
def test_a_suppressed_box_suppresses_nothing(form):
    """A chain: each box overlaps its neighbours only, so every second one stays."""
    starts = np.arange(9) * 0.05
    boxes = np.stack([np.zeros(9), starts, np.full(9, 0.1), starts + 0.1], axis=1)[None].astype(np.float32)
    scores = np.linspace(0.9, 0.5, 9, dtype=np.float32).reshape(1, 9, 1)
    assert check(form, boxes, scores, 0.1, 0.3, 50, 50) == [5]


@pytest.mark.parametrize("form", FORMS)
def test_classes_do_not_suppress_each_other(form):
    boxes = np.float32([[[0, 0, 1, 1], [0, 0, 1, 0.99]]])
    scores = np.float32([[[0.9, 0.1], [0.2, 0.8]]])
    assert check(form, boxes, scores, 0.05, 0.45, 50, 50) == [2]


def test_ties_go_to_the_lower_class_and_index():
    rng = np.random.default_rng(3)
    boxes, _ = random_boxes(3, count=80)
    scores = (rng.integers(1, 5, (3, 80, 4)) / 4).astype(np.float32)  # four levels
    check("keras", boxes, scores, 0.3, 0.45, 400, 60)
    check("keras", boxes, scores, 0.3, 0.45, 20, 30)
    same = np.float32([[[0, 0, 1, 1]] * 4])
    kept = nms.class_wise_nms(same, np.full((1, 4, 2), 0.5, np.float32), 0.1, 0.45, 10, 10)
    assert np.asarray(kept[3]).tolist() == [2]
    assert np.asarray(kept[2])[0, :2].tolist() == [0, 1]


@pytest.mark.parametrize("topk", [400, 15])
def test_both_forms_are_equal_without_ties(topk):
    boxes, scores = random_boxes(11, batch=4, count=300, classes=6)
    found = [form(boxes, scores, 0.2, 0.45, topk, 100) for form in FORMS.values()]
    for first, second in zip(*found, strict=True):
        assert np.array_equal(first, second)


def test_keras_form_compiles_with_xla():
    boxes, scores = random_boxes(5)
    settings = (0.3, 0.45, 50, 60)
    compiled = tf.function(functools.partial(nms.class_wise_nms, **_named(settings)), jit_compile=True)
    for first, second in zip(compiled(boxes, scores), nms.class_wise_nms(boxes, scores, *settings), strict=True):
        np.testing.assert_allclose(first, second, atol=1e-6)


def _named(settings):
    return dict(zip(("score_threshold", "nms_iou", "topk_candidates", "max_detections"), settings, strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_batch_size_may_be_open(form):
    boxes, scores = random_boxes(6, count=30)
    signature = [tf.TensorSpec([None, 30, 4]), tf.TensorSpec([None, 30, 4])]
    traced = tf.function(functools.partial(FORMS[form], **_named((0.3, 0.45, 20, 25))), input_signature=signature)
    for first, second in zip(traced(boxes, scores), FORMS[form](boxes, scores, 0.3, 0.45, 20, 25), strict=True):
        np.testing.assert_allclose(first, second, atol=1e-6)
