"""VOC and COCO numbers of 10,000 images with 100 detections each, beside the COCO library alone.

python scripts/benchmark_evaluate.py [--num_images=10000] [--detections=100]
"""

import argparse
import resource

import numpy as np
import timing

from ssd_tf.evaluation import coco, tables, voc
from ssd_tf.structures import Detections, Example, LabelMap

_CLASSES, _OBJECTS, _SIDE = 20, 7, 500.0


def main():
    """Prints seconds of both metrics and of the library's part, images per second, and peak memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_images", type=int, default=10_000)
    parser.add_argument("--detections", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    label_map = LabelMap(tuple(f"class {i}" for i in range(1, _CLASSES + 1)))
    truths, found = draw_set(options.num_images, options.detections, label_map)
    works = {
        "voc07": lambda: voc.evaluate(truths, found, label_map, use_07_metric=True),
        "coco": lambda: coco.evaluate(truths, found, label_map),
        "coco_library": library(truths, found, label_map),
    }
    seconds = timing.alternate(works, options.rounds, warm_up=0)
    medians = timing.median(seconds)
    timing.report(
        "evaluate",
        images=options.num_images,
        detections=options.num_images * options.detections,
        **{f"{name}_seconds": value for name, value in medians.items()},
        voc07_images_per_second=options.num_images / medians["voc07"],
        coco_images_per_second=options.num_images / medians["coco"],
        coco_over_library=timing.ratio(seconds, "coco", "coco_library"),
        peak_megabytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
    )


def draw_set(num_images, num_detections, label_map):
    """Truths, and detections of which some are near a truth."""
    rng = np.random.default_rng(0)
    truths, found = [], {}
    for number in range(num_images):
        boxes, classes = draw_boxes(rng, _OBJECTS), rng.integers(1, _CLASSES + 1, _OBJECTS)
        names = tuple(label_map.name(c) for c in classes)
        truths.append(Example(str(number), "", boxes, names, size=(int(_SIDE), int(_SIDE))))
        picked = rng.integers(0, _OBJECTS, num_detections)
        near = boxes[picked] + rng.normal(0, 6, (num_detections, 4))
        guesses = np.where(rng.random((num_detections, 1)) < 0.2, near, draw_boxes(rng, num_detections))
        corners = np.sort(guesses.reshape(-1, 2, 2), axis=1).reshape(-1, 4)[:, [1, 0, 3, 2]].astype(np.float32)
        scores = np.sort(rng.random(num_detections).astype(np.float32))[::-1]
        found[str(number)] = Detections(corners, scores, classes[picked].astype(np.int32))
    return truths, found


def draw_boxes(rng, count):
    """float64 [count, 4] yxyx pixels."""
    corners = rng.uniform(0, _SIDE - 60, (count, 2))
    return np.concatenate([corners, corners + rng.uniform(10, 60, (count, 2))], axis=1)


def library(truths, found, label_map):
    """A function that lets the library score data prepared before."""
    truth_table, detection_table = tables.gather(truths, found, label_map)
    truth_set = coco._data_set(coco._truth_rows(truth_table), len(truths), label_map)
    detection_set = coco._data_set(coco._detection_rows(detection_table), len(truths), label_map)
    return lambda: coco._evaluator(truth_set, detection_set)


if __name__ == "__main__":
    main()
