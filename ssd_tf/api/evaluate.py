"""A run, or anyone's detections, against records: VOC and COCO numbers."""

import time

from ssd_tf import fileio
from ssd_tf.annotations import coco as coco_files
from ssd_tf.api import predict
from ssd_tf.config import METRICS
from ssd_tf.data import pipeline
from ssd_tf.errors import ConfigError, DataError, suggest
from ssd_tf.evaluation import coco, operating_point, report, voc
from ssd_tf.inference.predictor import detect_records
from ssd_tf.records import reader
from ssd_tf.structures import Detections


def evaluate(
    run_dir=None,
    data=None,
    metric="voc07",
    checkpoint="latest",
    results=None,
    detections=None,
    batch_size=8,
    overrides=(),
    write_line=None,
    progress=None,
):
    """Scores detections.

    Args:
      run_dir: run directory; or None where `detections` is given.
      data: records.
      metric: "voc07" (11 points), "voc" (area) or "coco" (12 numbers).
      checkpoint: "latest", "best" or "step-N".
      results: COCO results file to write the detections to, or None.
      detections: COCO results file to score instead of a run.
      batch_size: images a batch.
      overrides: "postprocess.key=value" texts that replace the run's settings.
      write_line: function (text) that gets the table and the checkpoint's name, or None.
      progress: function (done, total), or None.

    Returns:
      dict: metric, mAP (0..1 or None), per_class {name: AP or None}, best_f1 and best_f1_per_class (see
      evaluation.operating_point), images, images_per_second; for coco also the 12 numbers.
    """
    check_metric(metric)
    if results:
        fileio.claim_file(results, (detections, run_dir, *str(data).split(",")))
    records = reader.open_records(data)
    for note in records.notes if write_line else ():
        write_line(note)
    truths = reader.read_examples(records)
    speed = None
    if detections:
        found = read_detections(detections, records.label_map)
    else:
        predictor = predict.load(run_dir, checkpoint, write_line, overrides)
        predictor.label_map.check_same(records.label_map, "run has", "shards have")
        found, speed = detect(predictor, records, batch_size, progress)
    result = score(truths, found, records.label_map, metric)
    if results:
        coco_files.write_results(results, found, records.label_map)
    if write_line:
        write_line(report.format_table(result))
    return {**result, "images": len(truths), "images_per_second": speed}


def check_metric(metric):
    """Raises ConfigError for an unknown metric."""
    if metric not in METRICS:
        raise ConfigError(f"--metric: {metric!r} is none of {', '.join(METRICS)}{suggest(metric, METRICS)}")


def detect(predictor, records, batch_size, progress=None):
    """Runs a predictor over records.

    Returns:
      ({source id: Detections}, images per second, start-up left out).
    """
    config = predictor.config
    batches = pipeline.inference_batches(records, config.model.image_size, config.data.resize, batch_size)
    predictor.warm_up(min(batch_size, records.num_examples))
    begun = time.perf_counter()
    report = (lambda done: progress(done, records.num_examples)) if progress else None
    with reader.record_errors(records):
        found = detect_records(predictor, batches, report)
    return found, round(len(found) / (time.perf_counter() - begun), 2)


def score(truths, found, label_map, metric):
    """Returns the numbers of one metric, and the score thresholds of the best F1, for {source id: Detections}."""
    if metric == "coco":
        numbers = coco.evaluate(truths, found, label_map)
    else:
        numbers = voc.evaluate(truths, found, label_map, use_07_metric=metric == "voc07")
    return {"metric": metric, **numbers, **operating_point.evaluate(truths, found, label_map)}


def read_detections(path, label_map):
    """Reads a COCO results file as {source id: Detections}; ids are the label map's source ids."""
    rows = coco_files.read_results(path)
    class_ids = {source: class_id for class_id, source in enumerate(label_map.source_ids, 1)}
    unknown = set(rows.category_ids.tolist()) - set(class_ids)
    if unknown:
        raise DataError(f"{path}: category id {min(unknown)} is not in the label map of the records")
    by_image = {}
    for position, image_id in enumerate(rows.image_ids):
        by_image.setdefault(image_id, []).append(position)
    found = {}
    for image_id, positions in by_image.items():
        best_first = sorted(positions, key=lambda position: -rows.scores[position])
        boxes = rows.boxes[best_first]
        boxes[:, 2:] += boxes[:, :2]
        classes = [class_ids[category] for category in rows.category_ids[best_first].tolist()]
        found[image_id] = Detections(boxes, rows.scores[best_first], classes)
    return found
