"""Suppression as one plain greedy loop in NumPy: every method, class-wise and over all."""

import functools

import numpy as np


def overlap(a, b, with_distance=False):
    """IoU or DIoU of two boxes; 0 for those without area."""
    h = min(a[2], b[2]) - max(a[0], b[0])
    w = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(h, 0) * max(w, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    value = shared / union if union > 0 else 0.0
    diagonal = (max(a[2], b[2]) - min(a[0], b[0])) ** 2 + (max(a[3], b[3]) - min(a[1], b[1])) ** 2
    apart = ((a[0] + a[2] - b[0] - b[2]) / 2) ** 2 + ((a[1] + a[3] - b[1] - b[3]) / 2) ** 2
    return value - apart / diagonal if with_distance and diagonal > 0 else value


FACTORS = {
    "hard": lambda a, b, nms_iou, sigma: float(overlap(a, b) <= nms_iou),
    "diou": lambda a, b, nms_iou, sigma: float(overlap(a, b, True) <= nms_iou),
    "soft_gaussian": lambda a, b, nms_iou, sigma: np.exp(-(overlap(a, b) ** 2) / sigma),
    "soft_linear": lambda a, b, nms_iou, sigma: 1 - overlap(a, b) if overlap(a, b) > nms_iou else 1.0,
}


def take_all(boxes, candidates, score_threshold, factor):
    """Takes the best (score, class, index), the first of equal ones, until none is above the threshold."""
    waiting, taken = [row for row in candidates if row[0] > score_threshold], []
    while waiting:
        best = max(range(len(waiting)), key=lambda place: waiting[place][0])
        taken.append(waiting.pop(best))
        box = boxes[taken[-1][2]]
        waiting = [(score * factor(box, boxes[index]), label, index) for score, label, index in waiting]
        waiting = [row for row in waiting if row[0] > score_threshold]
    return taken


def greedy(boxes, scores, settings, method, agnostic, sigma, all_pairs):
    """One image: rows (score, class, index), best first; equal scores by class, then as they were taken.

    With all_pairs, all pairs of (box, class) compete with one another, without a limit.
    """
    score_threshold, nms_iou, topk, most = settings
    factor = functools.partial(FACTORS[method], nms_iou=nms_iou, sigma=sigma)
    rows = [[(float(score), label, i) for label, score in enumerate(scores[i])] for i in range(len(boxes))]
    if all_pairs:
        groups = [[row for of_box in rows for row in of_box]]
    elif agnostic:
        groups = [[max(of_box, key=lambda row: row[0]) for of_box in rows]]
    else:
        groups = list(zip(*rows, strict=True))
    found = []
    for group in groups:
        candidates = sorted(group, key=lambda row: -row[0])[: None if all_pairs else topk]
        found += take_all(boxes.astype(np.float64), candidates, score_threshold, factor)
    return sorted(found, key=lambda row: -row[0])[:most]


def random_boxes(seed, batch=3, count=120, classes=4, levels=None):
    """Boxes float32 [B, A, 4] and scores [B, A, C]: distinct ones, so the order is unique, or of few levels."""
    rng = np.random.default_rng(seed)
    corners, sizes = rng.random((batch, count, 2)) * 0.8, rng.uniform(0.05, 0.4, (batch, count, 2))
    boxes = np.concatenate([corners, corners + sizes], axis=-1).astype(np.float32)
    total = batch * count * classes
    scores = (rng.permutation(total) + 1) / (total + 1)
    scores = np.ceil(scores * levels) / levels if levels else scores
    return boxes, scores.reshape(batch, count, classes).astype(np.float32)


def check(function, boxes, scores, settings, method="hard", agnostic=False, sigma=0.5, all_pairs=False):
    """Compares `function(boxes, scores, *settings)` with the loop; returns the number of detections by image."""
    kept_boxes, kept_scores, classes, counts = (np.asarray(x) for x in function(boxes, scores, *settings))
    size = settings[-1]
    assert kept_boxes.shape == (len(boxes), size, 4)
    assert kept_scores.shape == classes.shape == (len(boxes), size)
    for i in range(len(boxes)):
        expected = greedy(boxes[i], scores[i], settings, method, agnostic, sigma, all_pairs)
        assert counts[i] == len(expected)
        error = 1e-5 if method.startswith("soft") else 0
        np.testing.assert_allclose(kept_scores[i, : counts[i]], [row[0] for row in expected], rtol=error)
        assert classes[i, : counts[i]].tolist() == [row[1] for row in expected]
        assert np.array_equal(kept_boxes[i, : counts[i]], boxes[i, [row[2] for row in expected]].reshape(-1, 4))
        for padding in (kept_boxes, kept_scores, classes):
            assert not np.any(padding[i, counts[i] :])
    return counts.tolist()
