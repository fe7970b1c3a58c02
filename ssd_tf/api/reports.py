"""What a training leaves beside its checkpoints: pictures, the table of the classes, TensorBoard's files."""

import contextlib
import json

from ssd_tf import fileio, runs
from ssd_tf.api import evaluate
from ssd_tf.data import pipeline
from ssd_tf.errors import Interrupted, shown
from ssd_tf.evaluation import report
from ssd_tf.inference import drawing
from ssd_tf.inference.predictor import Predictor
from ssd_tf.records import reader
from ssd_tf.training import averaging, callbacks, tensorboard

CURVES = "curves.png"
BATCH = "train_batch.jpg"
PREDICTIONS = "val_predictions.jpg"
_NUM_PICTURES = 8
_SCORE_THRESHOLD = 0.5  # of the pictures, while no detection is right


class Validation:
    """Scores and draws a detector, as it is at the time, on validation records.

    Args:
      detector: api.build.Detector.
      run: runs.Run.
      records: records.reader.RecordSet.
    """

    def __init__(self, detector, run, records):
        self.config, self.records, self.model = run.config, records, detector.model
        self.result, self.found = None, []
        self.predictor = Predictor(detector.model, detector.anchors, run.config, run.label_map)
        self.truths = reader.read_examples(records)

    def __call__(self):
        """Scores the weights, and with train.ema their average as well.

        Returns:
          dict: the better numbers of train.validation_metric, see api.evaluate.score; beside them "weights", the
          checkpoint's file that has them, and "by_weights" {file: mAP}.
        """
        scored = {}
        for file, context in averaging.variants(self.model).items():
            with context:
                scored[file] = self._score()
        values = {file: result["mAP"] for file, (result, _) in scored.items()}
        best = max(values, key=lambda file: -1 if values[file] is None else values[file])
        result, self.found = scored[best]
        self.result = {**result, "weights": best, "by_weights": values}
        return self.result

    def _score(self):
        """The numbers, and what was found in the first pictures."""
        settings, label_map = self.config.train, self.records.label_map
        found, _ = evaluate.detect(self.predictor, self.records, settings.batch_size)
        result = evaluate.score(self.truths, found, label_map, settings.validation_metric)
        return result, [found[truth.source_id] for truth in self.truths[:_NUM_PICTURES]]

    def draw(self, step):
        """Returns uint8 [H, W, 3] RGB: truth beside what the last call found, from the score of its best F1 on."""
        size, rule = self.config.model.image_size, self.config.data.resize
        batches = pipeline.inference_batches(self.records, size, rule, _NUM_PICTURES)
        images, _, _ = next(batches.take(1).as_numpy_iterator())
        best = self.result["best_f1"] or {"threshold": None}
        threshold = _SCORE_THRESHOLD if best["threshold"] is None else best["threshold"]
        label_map = self.records.label_map
        return drawing.draw_validation(images, self.truths, self.found, label_map, threshold, step)


def make_hooks(run, validation, write_line):
    """Returns the hooks of trainer.train: TensorBoard's where the package is installed."""
    if not tensorboard.is_installed():
        write_line(
            f"TensorBoard is not installed (pip install tensorboard): logs go to {callbacks.LOG_CSV} and "
            f"{callbacks.LOG_JSONL} alone"
        )
        return []
    return [tensorboard.TensorBoard(run, validation and validation.draw, write_line)]


def finish(run, step, records, anchors, validation, write_line):
    """Draws the pictures that are missing or older than the last checkpoint, and prints the table of the classes.

    A fault is one line: the training is complete.

    Args:
      run: runs.Run.
      step: the training's last step.
      records: RecordSet trained on.
      anchors: float32 [A, 4], yxyx normalised.
      validation: Validation, or None.
      write_line: function (text) for the console.
    """
    pictures = {CURVES: lambda: _draw_curves(run), BATCH: lambda: _draw_first_batch(run, records, anchors)}
    if validation:
        pictures[PREDICTIONS] = lambda: validation.draw(step)
    pictures = {name: draw for name, draw in pictures.items() if _is_due(run, name)}
    if PREDICTIONS in pictures:
        with _faults_said("no table of the classes", write_line):
            write_line(report.format_table(validation.result or validation()))
        if not validation.result:
            del pictures[PREDICTIONS]
    for name, draw in pictures.items():
        with _faults_said(f"{name} is not drawn", write_line):
            data = drawing.encode(draw(), name)
            with fileio.atomic_write(run.path / name) as file:
                file.write(data)


def _is_due(run, name):
    path = run.path / name
    return not path.exists() or path.stat().st_mtime < (run.path / runs.LATEST).stat().st_mtime


@contextlib.contextmanager
def _faults_said(what, write_line):
    try:
        yield
    except Interrupted:
        raise
    except Exception as error:  # whatever it is, the training is complete and its end must be told
        write_line(f"{what}: {(str(error) or type(error).__name__).splitlines()[0]}")


def _draw_curves(run):
    lines = fileio.read_text(run.path / callbacks.LOG_JSONL).splitlines()
    rows = [json.loads(line) for line in lines if line.endswith("}")]  # a kill may have cut the last one
    title = f"{shown(run.path.name)}: {run.config.model.backbone}, {run.config.train.steps:,} steps"
    return drawing.draw_curves(rows, title)


def _draw_first_batch(run, records, anchors):
    # Read again: the stream is the same at every start, so a training that was interrupted has it too.
    stream = pipeline.training_stream(records, anchors, run.config)
    images, targets, _ = next(stream.take(1).as_numpy_iterator())
    return drawing.draw_batch(images, targets, anchors, run.label_map)
