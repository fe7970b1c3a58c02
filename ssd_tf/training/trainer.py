"""The training loop: Keras' fit over an endless stream, with steps as the clock."""

import math

import keras

from ssd_tf import runs
from ssd_tf.errors import Interrupted
from ssd_tf.models import detector
from ssd_tf.training import callbacks, checkpoint, optimizers


def compile_detector(model, losses, settings):
    """Makes a detector ready to train.

    Args:
      model: keras.Model of models.detector.
      losses: {"class_logits": Loss, "box_deltas": Loss}.
      settings: config.TrainConfig with steps set.
    """
    detector.set_batch_norm(model, settings.batch_norm_momentum, settings.freeze_batch_norm)
    optimizers.add_weight_decay(model, settings.weight_decay)
    jit = "auto" if keras.backend.backend() == "jax" else settings.jit_compile
    model.compile(optimizers.make_optimizer(settings), loss=losses, jit_compile=jit)


def train(model, make_stream, run, validate=None, write_line=print):
    """Trains a compiled model from the run's last checkpoint to train.steps.

    Args:
      model: compiled keras.Model.
      make_stream: function (examples already consumed) -> endless data set of (image, targets, weight).
      run: runs.Run; checkpoints and logs go there.
      validate: function () -> dict with "mAP" and "metric", or None.
      write_line: function (text) for the console.

    Returns:
      dict: step, resumed_from, best_metric, loss (of the last reporting interval).

    Raises:
      TrainingError: the loss is not finite. Interrupted: SIGTERM or Ctrl-C; the state is saved.
    """
    settings = run.config.train
    last = runs.find_checkpoint(run.path)
    start = last.state["step"] if last else 0
    if last:
        for name in last.skipped:
            write_line(f"checkpoint {name} incomplete, using {last.path.name}")
        checkpoint.restore(last, model)
        write_line(f"going on from step {start:,}")
    if start >= settings.steps:
        write_line(f"already finished at step {start:,}; raise train.steps to go on")
        best = runs.read_best(run.path)
        return {"step": start, "resumed_from": start, "best_metric": best and best["value"], "loss": None}
    with callbacks.Signals(Interrupted) as signals:
        log = callbacks.Log(run, start, optimizers.make_schedule(settings), write_line)
        saver = callbacks.Checkpoints(run, model, validate, log, signals)
        steps = callbacks.Steps(start, settings.steps, [callbacks.check_finite, log, saver])
        model.fit(
            make_stream(start * settings.batch_size),
            epochs=math.ceil((settings.steps - start) / settings.log_steps) + 1,
            steps_per_epoch=settings.log_steps,
            shuffle=False,  # the stream is shuffled already
            verbose=0,
            callbacks=[steps],
        )
    losses = [row["loss"] for row in log.rows if "loss" in row]
    return {
        "step": settings.steps,
        "resumed_from": start,
        "best_metric": saver.best_metric,
        "loss": losses[-1] if losses else None,
    }
