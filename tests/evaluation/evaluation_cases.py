"""Cats and dogs that both scores by VOC's matching are tested on."""

import numpy as np

from ssd_tf.structures import Detections, Example, LabelMap

CLASSES = LabelMap(("cat", "dog"))
CAT, DOG = 1, 2
# yxyx truths that lie apart from one another.
A, B, C = (0, 0, 10, 10), (20, 20, 30, 30), (40, 40, 50, 50)
NOWHERE = (80, 80, 90, 90)


def image(source_id, *truths, names=None, **flags):
    """One Example of yxyx pixel boxes, all cats unless `names` says otherwise."""
    return Example(source_id, "", np.array(truths, float), tuple(names or ["cat"] * len(truths)), **flags)


def found(*rows):
    """Detections of (yxyx box, score) or (yxyx box, score, class id) rows, in the order given."""
    boxes = np.array([np.array(row[0])[[1, 0, 3, 2]] for row in rows], np.float32).reshape(-1, 4)
    scores = np.array([row[1] for row in rows], np.float32)
    return Detections(boxes, scores, np.array([row[2] if len(row) > 2 else CAT for row in rows], np.int32))
