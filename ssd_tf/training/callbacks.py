"""What happens beside the steps: logs, progress, validation, checkpoints, signals, the guard against NaN.

Keras calls one callback, Steps; it calls the hooks in the order given, each with (step, logs).
"""

import csv
import json
import math
import signal
import sys
import time

import keras
import numpy as np

from ssd_tf import fileio, runs
from ssd_tf.errors import TrainingError
from ssd_tf.training import checkpoint

LOG_JSONL = "log.jsonl"
LOG_CSV = "log.csv"
COLUMNS = ("step", "loss", "class_loss", "box_loss", "learning_rate", "images_per_second", "seconds", "mAP")


class Steps(keras.callbacks.Callback):
    """Counts steps over all of a run's sessions and ends the training.

    Args:
      start: steps done before.
      stop: step to end at.
      hooks: callables (step, logs), called after every step in this order.
    """

    def __init__(self, start, stop, hooks):
        super().__init__()
        self.step, self.stop, self.hooks = start, stop, hooks

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        for hook in self.hooks:
            hook(self.step, logs)
        if self.step >= self.stop:
            self.model.stop_training = True


def check_finite(step, logs):
    """Raises TrainingError when the loss is NaN or infinite; no checkpoint of that step is written."""
    loss = float(logs["loss"])
    if not math.isfinite(loss):
        parts = ", ".join(f"{name} {float(value):.3g}" for name, value in logs.items())
        raise TrainingError(f"step {step}: the loss is {loss} ({parts}); try a lower train.learning_rate")


def check_weights(step, model):
    """Raises TrainingError when a weight is not finite: the loss shows it one step late, after a checkpoint."""
    for weight in model.weights:
        if not np.isfinite(keras.ops.convert_to_numpy(weight)).all():
            raise TrainingError(f"step {step}: {weight.path} is not finite; try a lower train.learning_rate")


class Log:
    """Writes a row every few steps to log.jsonl and log.csv, and one line of progress to the console.

    Args:
      run: runs.Run.
      start: steps done before; later rows of an interrupted session are removed.
      schedule: function (step) -> learning rate.
      write_line: function (text) for the console.
    """

    def __init__(self, run, start, schedule, write_line):
        self.run, self.schedule, self.write_line = run, schedule, write_line
        self.settings = run.config.train
        self.rows = _earlier_rows(run.path / LOG_JSONL, start)
        self.start, self.begun = start, time.perf_counter()
        self.last_step, self.last_time = start, self.begun
        self._rewrite()

    def __call__(self, step, logs):
        if (step - self.start) % self.settings.log_steps and step != self.settings.steps:
            return  # Keras averages its losses over the same intervals
        now = time.perf_counter()
        speed = (step - self.last_step) * self.settings.batch_size / max(now - self.last_time, 1e-9)
        row = {
            "step": step,
            "loss": float(logs["loss"]),
            "class_loss": float(logs["class_logits_loss"]),
            "box_loss": float(logs["box_deltas_loss"]),
            "learning_rate": float(self.schedule(step)),
            "images_per_second": round(speed, 2),
            "seconds": round(now - self.begun, 2),
        }
        self.last_step, self.last_time = step, now
        self.add(row)
        left = (self.settings.steps - step) * (now - self.begun) / max(step - self.start, 1)
        self.write_line(_progress_line(row, self.settings.steps, left))

    def add(self, row):
        """Appends one row to both files."""
        self.rows.append(row)
        with fileio.output_errors(self.run.path):
            with open(self.run.path / LOG_JSONL, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            with open(self.run.path / LOG_CSV, "a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, COLUMNS).writerow(row)

    def _rewrite(self):
        with fileio.atomic_write(self.run.path / LOG_JSONL, "w") as file:
            file.writelines(json.dumps(row) + "\n" for row in self.rows)
        with fileio.atomic_write(self.run.path / LOG_CSV, "w") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows)


def _earlier_rows(path, start):
    rows = []
    for line in fileio.read_text(path).splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # a line cut by a kill
            continue
        if row["step"] <= start:
            rows.append({key: row[key] for key in COLUMNS if key in row})
    return rows


def _progress_line(row, total, seconds_left):
    minutes, seconds = divmod(round(seconds_left), 60)
    done = round(20 * row["step"] / total)
    return (
        f"[{'#' * done}{'.' * (20 - done)}] step {row['step']}/{total}  loss {row['loss']:.3f} "
        f"(class {row['class_loss']:.3f}, box {row['box_loss']:.3f})  rate {row['learning_rate']:.2g}  "
        f"{row['images_per_second']:.1f} images/s  {minutes}:{seconds:02d} left"
    )


class Checkpoints:
    """Saves and validates at their steps, keeps the best, and obeys SIGTERM and Ctrl-C.

    Args:
      run: runs.Run.
      model: compiled keras.Model.
      validate: function () -> dict with "mAP" (or None) and "metric", or None.
      log: Log.
      signals: Signals.
    """

    def __init__(self, run, model, validate, log, signals):
        self.run, self.model, self.validate, self.log, self.signals = run, model, validate, log, signals
        self.settings = run.config.train
        best = runs.read_best(run.path)
        comparable = best is not None and best["metric"] == self.settings.validation_metric
        self.best_metric = best["value"] if comparable else None
        self.validation_steps = self.settings.validation_steps or math.ceil(self.settings.steps / 10)

    def __call__(self, step, logs):
        final = step == self.settings.steps
        validating = bool(self.validate) and (final or step % self.validation_steps == 0)
        caught = self.signals.caught
        if validating or final or caught or step % self.settings.checkpoint_steps == 0:
            check_weights(step, self.model)
            checkpoint.save(self.run, self.model, step)
        if caught:
            self.signals.leave(f"saved step {step:,}; run the same command to continue")
        if validating:
            self._validate(step)

    def _validate(self, step):
        begun = time.perf_counter()
        result = self.validate()
        value, metric = result["mAP"], result["metric"]
        text = "n/a" if value is None else f"{value:.4f}"
        self.log.write_line(f"step {step}: validation mAP {text} ({metric}, {time.perf_counter() - begun:.1f} s)")
        self.log.add({"step": step, "mAP": value})
        if value is not None and (self.best_metric is None or value > self.best_metric):
            self.best_metric = value
            runs.mark_best(self.run.path, step, metric, value)


class Signals:
    """Context that turns the first SIGTERM or SIGINT into a wish to stop; a second one acts at once."""

    def __init__(self, make_error):
        self.caught, self._make_error, self._old = None, make_error, {}

    def __enter__(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._old[number] = signal.signal(number, self._catch)
            except ValueError:  # not the main thread: whoever started us handles signals
                break
        return self

    def __exit__(self, *_):
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _catch(self, number, _):
        self.caught = number
        signal.signal(number, self._old[number])
        print("stopping after this step; once more to stop at once", file=sys.stderr)

    def leave(self, message):
        """Raises the error that ends the training in good order."""
        raise self._make_error(message, self.caught)
