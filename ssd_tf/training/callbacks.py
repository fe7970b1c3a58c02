"""What happens beside the steps: logs, progress, validation, checkpoints, signals, the guard against NaN.

Keras calls one callback, Steps; it calls the hooks in the order given, each with (step, logs).
"""

import contextlib
import csv
import json
import math
import signal
import sys
import time

import keras
import numpy as np

from ssd_tf import config as configs
from ssd_tf import fileio, runs
from ssd_tf.errors import TrainingError, shown
from ssd_tf.training import averaging, checkpoint

LOG_JSONL = "log.jsonl"
LOG_CSV = "log.csv"
_LOSSES = {"class_loss": "class_logits_loss", "box_loss": "box_deltas_loss"}  # our names: Keras'
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


def notify(hooks, event, *arguments):
    """Calls the method named `event` of those hooks that have one."""
    for hook in hooks:
        getattr(hook, event, lambda *_: None)(*arguments)


class FiniteGuard:
    """Ends the training at the very step whose loss, or whose weights, are no longer finite.

    Keras gives running means over its epochs; one NaN or infinity makes all the following ones NaN or infinite,
    so that the first to be seen is that of the step itself.

    Args:
      run: runs.Run.
      start: steps done before.
      schedule: function (step) -> learning rate.
      read_ids: function (step) -> source ids of the images of that step's batch, or None.
    """

    def __init__(self, run, start, schedule, read_ids=None):
        self.run, self.start, self.schedule, self.read_ids = run, start, schedule, read_ids
        self.before = {}

    def __call__(self, step, logs):
        if not math.isfinite(float(logs["loss"])):
            self._stop(step, f"the loss is {float(logs['loss'])} ({self._parts(step, logs)})")
        self.before = logs

    def check_weights(self, step, model):
        """Raises TrainingError when a weight is not finite, which the loss shows a step later: after a save."""
        for weight in model.weights:
            if not np.isfinite(keras.ops.convert_to_numpy(weight)).all():
                self._stop(step, f"{weight.path} is not finite")

    def _parts(self, step, logs):
        """The losses of this step alone, out of the running means."""
        count = (step - self.start - 1) % self.run.config.train.log_steps + 1
        names = {"loss": "loss", **_LOSSES}
        alone = {
            column: count * float(logs[name]) - (count - 1) * float(self.before.get(name, 0.0))
            for column, name in names.items()
        }
        alone["weight decay"] = alone.pop("loss") - sum(alone[column] for column in _LOSSES)
        return ", ".join(f"{column} {value:.3g}" for column, value in alone.items())

    def _stop(self, step, what):
        rate = float(self.schedule(step - 1))  # a step is made with the rate before it
        ids = f", images {', '.join(map(shown, self.read_ids(step)))}" if self.read_ids else ""
        last = runs.latest_name(self.run.path)
        kept = f"; {last} is kept" if last else ""
        raise TrainingError(
            f"step {step}: {what}, learning rate {rate:.3g}{ids}: try a lower train.learning_rate{kept}"
        )


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
        self.last_step, self.last_time, self.pauses = start, self.begun, 0.0
        self._rewrite()

    def __call__(self, step, logs):
        if (step - self.start) % self.settings.log_steps and step != self.settings.steps:
            return  # Keras averages its losses over the same intervals
        now = time.perf_counter()
        speed = (step - self.last_step) * self.settings.batch_size / max(now - self.last_time, 1e-9)
        row = {
            "step": step,
            "loss": float(logs["loss"]),
            **{column: float(logs[name]) for column, name in _LOSSES.items()},
            "learning_rate": float(self.schedule(step)),
            "images_per_second": round(speed, 2),
            "seconds": round(now - self.begun, 2),
        }
        self.last_step, self.last_time = step, now
        self.add(row)
        left = (self.settings.steps - step) * (now - self.begun) / max(step - self.start, 1)
        self.write_line(_progress_line(row, self.settings.steps, left))

    def leave_out(self, seconds):
        """Keeps a pause out of the images a second."""
        self.last_time += seconds
        self.pauses += seconds

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
        except (ValueError, RecursionError):  # a line cut by a kill
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int) and row["step"] <= start:
            rows.append({key: row[key] for key in COLUMNS if key in row and _is_loggable(row[key])})
    return rows


def _is_loggable(value):
    return value is None or (isinstance(value, (int, float)) and math.isfinite(value))


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
      last: runs.Checkpoint that the training goes on from, or None.
      validate: function () -> dict with "mAP" (or None) and "metric", or None.
      log: Log.
      signals: Signals.
      check_weights: function (step, model) that raises when a weight is not finite.
      hooks: those with a method `validated` are told the result of each validation.
      deterministic: noted in the checkpoints.
    """

    def __init__(self, run, model, last, validate, log, signals, check_weights, hooks=(), deterministic=False):
        self.run, self.model, self.validate, self.log, self.signals = run, model, validate, log, signals
        self.check_weights, self.hooks, self.deterministic = check_weights, hooks, deterministic
        self.settings = run.config.train
        self.best = _best_before(run, last)
        steps = self.settings.validation_steps
        self.validation_steps = steps or math.ceil(self.settings.steps / configs.VALIDATIONS)

    def __call__(self, step, logs):
        validating = self._is_validated(step)
        caught = self.signals.due
        final = step == self.settings.steps
        if validating or final or caught or step % self.settings.checkpoint_steps == 0:
            checkpoint.gather(self.model)
            self.check_weights(step, self.model)
            checkpoint.save(self.run, self.model, step, self.best, self.deterministic)
        if caught:
            self.signals.leave(_saved(step))
        if validating:
            self._validate(step)
            self.model.stop_training = self.is_patience_spent()

    def is_patience_spent(self):
        """Whether as many validations in a row as train.early_stopping allows have brought nothing better."""
        patience, best = self.settings.early_stopping, self.best
        if not patience or not best or not self.validate:
            return False
        since = [row for row in self.log.rows if "mAP" in row and runs.step_name(row["step"]) > best["checkpoint"]]
        if len(since) >= patience:  # also when a training that was ended so is started again
            self.log.write_line(
                f"stopped early: {len(since)} validations without a better one than {best['value']:.4f} of "
                f"{best['checkpoint']} (train.early_stopping)"
            )
        return len(since) >= patience

    def catch_up(self, step):
        """Validates the checkpoint of `step` where a kill came between the two."""
        done = any(row["step"] == step and "mAP" in row for row in self.log.rows)
        if step and self._is_validated(step) and not done:
            self._validate(step)

    def _share(self):
        """What validation has cost so far; nothing is said of a session that has only begun."""
        spent = time.perf_counter() - self.log.begun
        return f", {self.log.pauses / spent:.0%} of the time so far"

    def _is_validated(self, step):
        return bool(self.validate) and (step == self.settings.steps or step % self.validation_steps == 0)

    def _validate(self, step):
        begun = time.perf_counter()
        with self.signals.leaving_at_once(_saved(step)):
            result = self.validate()
        value, metric = result["mAP"], result["metric"]
        seconds = time.perf_counter() - begun
        self.log.leave_out(seconds)
        cost = f"{seconds:.1f} s{self._share()}"
        self.log.write_line(f"step {step}: validation {_scores(result)} ({metric}, {cost})")
        if value is not None and (self.best is None or value > self.best["value"]):
            self.best = runs.mark_best(self.run.path, step, metric, value, result.get("weights", runs.WEIGHTS))
        self.log.add({"step": step, "mAP": value})  # last: this row says that the validation is complete
        notify(self.hooks, "validated", step, result)


def _scores(result):
    """The mAP of a validation, and where the weights have an average that of both."""
    values = result.get("by_weights", {runs.WEIGHTS: result["mAP"]})
    scores = {file: "n/a" if value is None else f"{value:.4f}" for file, value in values.items()}
    if len(scores) == 1:
        return f"mAP {next(iter(scores.values()))}"
    return "mAP " + ", ".join(f"{score} of the {averaging.name(file)} weights" for file, score in scores.items())


def _saved(step):
    return f"saved step {step:,}; run the same command to continue"


def _best_before(run, last):
    """The best validation up to the checkpoint that the training goes on from, by the metric in use."""
    best = runs.read_best(run.path) if last else None
    if best and best["checkpoint"] > last.path.name:  # its checkpoint is damaged; the steps to it come again
        best = last.state.get("best")
    return best if best and best["metric"] == run.config.train.validation_metric else None


class Signals:
    """Context that turns the first SIGTERM or SIGINT into a wish to stop; a second one acts at once.

    Attributes:
      caught: number of the signal, or None.
      agreed: among several workers, which must stop after the same step: whether any has told the others so.
    """

    def __init__(self, make_error):
        self.caught, self._make_error, self._old, self._saved = None, make_error, {}, None
        self.agreed = None

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

    @property
    def due(self):
        """The signal to stop for now, or None."""
        if self.agreed is None:
            return self.caught
        return (self.caught or signal.SIGTERM) if self.agreed else None

    def _catch(self, number, _):
        self.caught = number
        for other, handler in self._old.items():  # SIGINT is ignored in a script's background
            signal.signal(other, signal.default_int_handler if handler == signal.SIG_IGN else handler)
        if self._saved:
            self.leave(self._saved)
        print("stopping after this step; once more to stop at once", file=sys.stderr)

    @contextlib.contextmanager
    def leaving_at_once(self, message):
        """Inside, everything is saved: a signal ends the training with `message` and waits for no step."""
        self._saved = message
        try:
            yield
        finally:
            self._saved = None

    def leave(self, message):
        """Raises the error that ends the training in good order."""
        raise self._make_error(message, self.caught or signal.SIGTERM)
