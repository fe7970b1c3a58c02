"""The training loop: Keras' fit over an endless stream, with steps as the clock."""

import math

import keras

from ssd_tf.errors import Interrupted
from ssd_tf.models import detector, freezing
from ssd_tf.training import callbacks, checkpoint, optimizers


def compile_detector(model, losses, settings, deterministic=False):
    """Makes a detector ready to train.

    Args:
      model: keras.Model of models.detector.
      losses: {"class_logits": Loss, "box_deltas": Loss}.
      settings: config.TrainConfig with steps set.
      deterministic: leaves XLA out on TensorFlow.
    """
    detector.set_batch_norm(model, settings.batch_norm_momentum, settings.freeze_batch_norm)
    freezing.freeze(model, settings.freeze, settings.freeze_to)
    optimizer = optimizers.make_optimizer(settings)
    optimizers.fit_to(optimizer, model, settings)
    jit = settings.jit_compile and not deterministic
    jit = "auto" if keras.backend.backend() == "jax" else jit
    model.compile(optimizer, loss=losses, jit_compile=jit)


def train(
    model,
    make_stream,
    run,
    validate=None,
    write_line=print,
    hooks=(),
    last=None,
    read_ids=None,
    deterministic=False,
):
    """Trains a compiled model from a checkpoint, or from its present weights, to train.steps.

    Args:
      model: compiled keras.Model.
      make_stream: function (examples already consumed) -> endless data set of (image, targets, weight).
      run: runs.Run; checkpoints and logs go there.
      validate: function () -> dict with "mAP" and "metric", or None.
      write_line: function (text) for the console.
      hooks: callables (step, logs), called after every step and its log row, before its checkpoint. Each may have
        a method `validated(step, result)`, called after a validation, and `finish()`, called at the end of a
        training that reached its last step.
      last: runs.Checkpoint of the run to go on from, or None.
      read_ids: function (step) -> source ids of the images of that step's batch, or None.
      deterministic: noted in the checkpoints (see devices.make_deterministic).

    Returns:
      dict: step, resumed_from, best_metric, loss (of the last reporting interval).

    Raises:
      TrainingError: the loss is not finite. Interrupted: SIGTERM or Ctrl-C; the state is saved.
    """
    settings = run.config.train
    start = last.state["step"] if last else 0
    if last:
        checkpoint.restore(last, model)
        for line in _resume_lines(last, deterministic):
            write_line(line)
    schedule = optimizers.make_schedule(settings)
    with callbacks.Signals(Interrupted) as signals:
        log = callbacks.Log(run, start, schedule, write_line)
        guard = callbacks.FiniteGuard(run, start, schedule, read_ids)
        saver = callbacks.Checkpoints(
            run, model, last, validate, log, signals, guard.check_weights, hooks, deterministic
        )
        saver.catch_up(start)
        if start < settings.steps:
            steps = callbacks.Steps(start, settings.steps, [guard, log, *hooks, saver])
            _fit(model, make_stream(start * settings.batch_size), steps, settings)
    if start < settings.steps:
        callbacks.notify(hooks, "finish")
    else:
        write_line(f"already finished at step {start:,}; raise train.steps to go on")
    losses = [row["loss"] for row in log.rows if "loss" in row] if start < settings.steps else []
    return {
        "step": max(start, settings.steps),
        "resumed_from": start,
        "best_metric": saver.best and saver.best["value"],
        "loss": losses[-1] if losses else None,
    }


def _resume_lines(last, deterministic):
    for name in last.skipped:
        yield f"checkpoint {name} incomplete, using {last.path.name}"
    yield f"going on from step {last.state['step']:,}"
    before = last.state.get("deterministic", deterministic)
    if before != deterministic:
        words = {True: "with --deterministic", False: "without --deterministic"}
        yield f"so far this run was trained {words[before]}, from here on {words[deterministic]}"


def _fit(model, stream, steps, settings):
    """Keras' loop; its epochs are the intervals over which it averages the losses."""
    model.fit(
        stream,
        epochs=math.ceil((settings.steps - steps.step) / settings.log_steps) + 1,
        steps_per_epoch=settings.log_steps,
        shuffle=False,  # the stream is shuffled already
        verbose=0,
        callbacks=[steps],
    )
