"""The training loop: Keras' fit over an endless stream, with steps as the clock."""

import math
import statistics
import time

import keras

from ssd_tf.errors import Interrupted
from ssd_tf.models import detector, freezing
from ssd_tf.training import callbacks, checkpoint, optimizers
from ssd_tf.training import team as teams

_FIRST_STEPS = 3  # of time_steps, in which the step is compiled and the buffers fill
_TIMED_STEPS, _TIMED_SECONDS = (10, 100), 15.0  # least and most; less than the most once the seconds are over


def compile_detector(model, losses, settings, deterministic=False, team=teams.ALONE):
    """Makes a detector ready to train.

    Args:
      model: keras.Model of models.detector, built in the team's scope.
      losses: {"class_logits": Loss, "box_deltas": Loss}.
      settings: config.TrainConfig with steps set.
      deterministic: leaves XLA out on TensorFlow.
      team: team.Team that trains it.
    """
    detector.set_batch_norm(model, settings.batch_norm_momentum, settings.freeze_batch_norm)
    freezing.freeze(model, settings.freeze, settings.freeze_to)
    with team.scope():
        optimizer = optimizers.make_optimizer(settings)
    optimizer.reduce = team.sum_gradients if team.strategy else None
    optimizers.fit_to(optimizer, model, settings)
    jit = settings.jit_compile and not deterministic
    jit = "auto" if keras.backend.backend() == "jax" else jit
    with team.scope():
        model.compile(optimizer, loss=losses, jit_compile=jit)
        model.optimizer.build(model.trainable_variables)


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
    team=teams.ALONE,
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
      team: team.Team whose chief this process is.

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
        steps = None
        going_on = start < settings.steps and not saver.is_patience_spent()
        if team.num_workers > 1:
            teams.share_state(team, model, start if going_on else settings.steps)
        if going_on:
            steps = callbacks.Steps(start, settings.steps, [guard, log, *hooks, saver])
            _fit(team, model, make_stream(start * settings.batch_size), steps, run.config, signals)
    if steps:
        callbacks.notify(hooks, "finish")
    elif start >= settings.steps:
        write_line(f"already finished at step {start:,}; raise train.steps to go on")
    losses = [row["loss"] for row in log.rows if "loss" in row] if steps else []
    return {
        "step": steps.step if steps else start,
        "resumed_from": start,
        "best_metric": saver.best and saver.best["value"],
        "loss": losses[-1] if losses else None,
    }


def time_steps(model, stream):
    """Returns the seconds of a training step, the median of some; the model is spent by it.

    Args:
      model: compiled keras.Model.
      stream: endless data set of (image, targets, weight).
    """
    seconds = []
    begun = time.perf_counter()

    def note(_, logs):
        float(logs["loss"])  # waits for the step
        seconds.append(time.perf_counter() - begun - sum(seconds))
        if len(seconds) >= _TIMED_STEPS[0] and sum(seconds[_FIRST_STEPS:]) > _TIMED_SECONDS:
            model.stop_training = True

    steps = callbacks.Steps(0, _FIRST_STEPS + _TIMED_STEPS[1], [note])
    model.fit(stream, steps_per_epoch=steps.stop, shuffle=False, verbose=0, callbacks=[steps])
    return statistics.median(seconds[_FIRST_STEPS:])


def _resume_lines(last, deterministic):
    for name in last.skipped:
        yield f"checkpoint {name} incomplete, using {last.path.name}"
    yield f"going on from step {last.state['step']:,}"
    before = last.state.get("deterministic", deterministic)
    if before != deterministic:
        words = {True: "with --deterministic", False: "without --deterministic"}
        yield f"so far this run was trained {words[before]}, from here on {words[deterministic]}"


def follow(model, make_stream, config, team):
    """Trains with the other workers, as one that is not their chief: nothing is written here.

    Args:
      model: compiled keras.Model.
      make_stream: as train, with this worker's share of the examples.
      config: Config.
      team: team.Team.

    Returns:
      the step that was reached.
    """
    start = teams.share_state(team, model, 0)
    if start >= config.train.steps:
        return start
    steps = callbacks.Steps(start, config.train.steps, ())
    with callbacks.Signals(Interrupted) as signals:
        _fit(team, model, make_stream(start * config.train.batch_size), steps, config, signals)
    return steps.step


def _fit(team, model, stream, steps, config, signals):
    """Keras' loop, whose epochs are the intervals of averaged losses, or that of several workers."""
    settings = config.train
    if team.num_workers > 1:
        teams.fit(team, model, stream, steps, settings, config.loss.min_negatives, signals)
        return
    model.fit(
        stream,
        epochs=math.ceil((settings.steps - steps.step) / settings.log_steps) + 1,
        steps_per_epoch=settings.log_steps,
        shuffle=False,  # the stream is shuffled already
        verbose=0,
        callbacks=[steps],
    )
