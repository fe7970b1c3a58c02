"""How many boxes no anchor fits: against a comparison of all pairs, and by hand."""

import numpy as np
from PIL import Image

from ssd_tf import config as configs
from ssd_tf.data import anchor_fit
from ssd_tf.records import encoding, reader, writer
from ssd_tf.structures import Example, LabelMap

ANCHORS = np.float32([[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]])


def plain_iou(a, b):
    height, width = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    shared = max(height, 0) * max(width, 0)
    return shared / (sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)) - shared)


def test_best_overlaps_against_all_pairs(monkeypatch):
    monkeypatch.setattr(anchor_fit, "_CHUNK", 4)
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 0.6, (23, 2))
    boxes = np.float32(np.concatenate([corners, corners + rng.uniform(0.05, 0.4, (23, 2))], axis=1))
    anchors, boxes = boxes[:10], boxes[10:]
    wanted = [max(plain_iou(box, anchor) for anchor in anchors.tolist()) for box in boxes.tolist()]
    np.testing.assert_allclose(anchor_fit.best_overlaps(boxes, anchors), wanted, rtol=1e-5)
    assert anchor_fit.best_overlaps(np.zeros((0, 4), np.float32), anchors).shape == (0,)


def test_report_by_class(tmp_path):
    """80 x 40 pixels: an IoU of 1, of 2/5 and of 1/25; a difficult box counts only where it is trained on."""
    Image.new("RGB", (80, 40)).save(tmp_path / "a.png")
    boxes = np.array([[0, 0, 20, 40], [0, 0, 10, 32], [0, 0, 4, 8], [20, 40, 40, 80]])
    names, hard = ("cell", "disc", "disc", "disc"), [False, False, False, True]
    labels = LabelMap(("absent", "cell", "disc"))
    writer.write_records(
        [Example("a", str(tmp_path / "a.png"), boxes, names, difficult=hard)],
        labels,
        tmp_path,
        encoding.WriteOptions(workers=1),
    )
    records = reader.open_records(tmp_path)
    assert anchor_fit.describe(records, ANCHORS, configs.Config()) == [
        "anchors: the best IoU is below 0.5 for 66.7% and below 0.3 for 33.3% of 3 boxes; "
        "those below 0.5 are matched by force alone",
        "  cell: below 0.5 for 0.0% and below 0.3 for 0.0% of 1 boxes",
        "  disc: below 0.5 for 100.0% and below 0.3 for 50.0% of 2 boxes",
    ]
    config = configs.replace(configs.Config(), data__use_difficult=True, matcher__iou_threshold=0.35)
    assert anchor_fit.describe(records, ANCHORS, config)[2] == (
        "  disc: below 0.35 for 33.3% and below 0.3 for 33.3% of 3 boxes"
    )
