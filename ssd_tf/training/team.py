"""Which devices and machines train together.

Several devices of one machine share Keras' fit through MirroredStrategy. Several machines, each started with the
same command and a TF_CONFIG of its own, take their steps through `fit` below: Keras' own fit does not work under
MultiWorkerMirroredStrategy (Keras 3.15 reduces a batch that is spread over replicas as if it were a number).
The first worker is the chief: it alone writes the run, and the others take its weights.
"""

import contextlib
import json
import math
import os
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from ssd_tf.boxes import matcher
from ssd_tf.errors import ConfigError, EnvironmentFault, TrainingError

_LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError)
_LOST_WORDS = ("Collective ops is aborted", "heartbeat")
_POSITIVE = 4  # column of the box targets that is 1 where an anchor is matched


@dataclass(frozen=True)
class Team:
    """Devices that train together.

    Attributes:
      strategy: tf.distribute.Strategy, or None for one device.
      worker: this process among the workers; 0 is the chief.
      num_workers: processes.
    """

    strategy: tf.distribute.Strategy | None = None
    worker: int = 0
    num_workers: int = 1

    @property
    def is_chief(self):
        """Whether this process writes the run."""
        return self.worker == 0

    @property
    def num_replicas(self):
        """Devices of all workers."""
        return self.strategy.num_replicas_in_sync if self.strategy else 1

    def scope(self):
        """Returns the context in which models are to be built and compiled."""
        return self.strategy.scope() if self.strategy else contextlib.nullcontext()

    def sum_gradients(self, gradients):
        """Returns the sums over all replicas, in whose context it is called."""
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, gradients)

    def describe(self):
        """Returns a line for the user, or None for one device."""
        if self.num_workers > 1:
            return f"worker {self.worker + 1} of {self.num_workers}, {self.num_replicas} devices in all"
        return f"{self.num_replicas} devices, a part of each batch on each" if self.strategy else None


ALONE = Team()


def form(settings):
    """Finds the devices to train on: those of the cluster of TF_CONFIG, or this machine's.

    To be called before anything else of TensorFlow is used.

    Args:
      settings: config.TrainConfig; `devices` of this machine are used, 0 for all accelerators.

    Returns:
      Team.

    Raises:
      ConfigError: TF_CONFIG cannot be understood, there are fewer devices, or a batch is no multiple of them.
      EnvironmentFault: the workers do not find each other.
    """
    addresses, worker = read_cluster(os.environ.get("TF_CONFIG", ""))
    if keras.backend.backend() != "tensorflow":
        if len(addresses) > 1:
            raise ConfigError("TF_CONFIG names several workers: they need KERAS_BACKEND=tensorflow")
        if settings.devices > 1:
            raise ConfigError("train.devices: one device trains unless KERAS_BACKEND is tensorflow")
        return ALONE
    team = _meet(addresses, worker, settings) if len(addresses) > 1 else _gather(settings.devices)
    if team.strategy and settings.accumulate > 1:  # Keras 3.15 would sum gradients inside a condition
        raise ConfigError(f"train.accumulate is for one device, here are {team.num_replicas}: set train.devices=1")
    if team.strategy and settings.precision == "mixed_float16":  # Keras 3.15 looks for overflow on each alone
        raise ConfigError("train.precision=mixed_float16 is for one device: set mixed_bfloat16 or train.devices=1")
    if team.strategy and settings.jit_compile:
        raise ConfigError("train.jit_compile is for one device: set it to false, or train.devices=1")
    if settings.batch_size % team.num_replicas:
        raise ConfigError(
            f"train.batch_size ({settings.batch_size}) must be a multiple of the {team.num_replicas} devices; "
            "train.devices says how many of this machine's to use"
        )
    return team


def read_cluster(text):
    """Reads TF_CONFIG.

    Args:
      text: its JSON: {"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}, where
        the first may stand alone under "chief"; or "".

    Returns:
      (list of the workers' addresses, index of this one).

    Raises:
      ConfigError: it is something else.
    """
    if not text.strip():
        return [], 0
    try:
        content = json.loads(text)
        cluster, task = content["cluster"], content["task"]
        jobs = {name: list(cluster.get(name, [])) for name in ("chief", "worker")}
        place = list(jobs).index(task["type"])
        index = int(task["index"])
        addresses = [address for job in jobs.values() for address in job]
        if set(cluster) - set(jobs) or not 0 <= index < len(jobs[task["type"]]):
            raise ValueError
        if not all(isinstance(address, str) and ":" in address for address in addresses):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ConfigError(
            'TF_CONFIG must be {"cluster": {"worker": ["HOST:PORT", ...]}, "task": {"type": "worker", "index": N}}'
        ) from None
    return addresses, index + (len(jobs["chief"]) if place else 0)


def _meet(addresses, worker, settings):
    if settings.devices:
        raise ConfigError("train.devices is for one machine: workers of TF_CONFIG use all their devices")
    if settings.hours:
        raise ConfigError("train.hours is for one machine: set train.steps or train.epochs for several workers")
    if settings.batch_size % len(addresses):
        raise ConfigError(
            f"train.batch_size ({settings.batch_size}) must be a multiple of the {len(addresses)} workers"
        )
    try:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    except (tf.errors.OpError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0][:160]
        raise EnvironmentFault(f"the workers of TF_CONFIG do not meet: {reason}") from error
    return Team(strategy, worker, len(addresses))


def _gather(wanted):
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    names = [device.name.removeprefix("/device:") for device in devices]
    if wanted > len(names):
        raise ConfigError(f"train.devices: {wanted} are wanted, there are {len(names)}: {', '.join(names)}")
    names = names[: wanted or None]
    return Team(tf.distribute.MirroredStrategy(names)) if len(names) > 1 else ALONE


def share_state(team, model, step):
    """Gives every worker the chief's weights and optimizer.

    Args:
      team: Team of several workers.
      model: compiled keras.Model of each; its optimizer is built.
      step: the chief's step; the others' is not used.

    Returns:
      the chief's step.
    """
    variables = [*model.variables, *model.optimizer.variables]
    local = team.num_replicas // team.num_workers
    numbers = [tf.cast(keras.ops.convert_to_numpy(variable), tf.float64) for variable in variables]
    numbers.append(tf.constant(step or 0, tf.float64))
    factor = 1.0 / local if team.is_chief else 0.0
    # A weight of the others that is not finite would spoil the sum.
    values = _make_sum(team)([number * factor if factor else tf.zeros_like(number) for number in numbers])
    for variable, value in zip(variables, values, strict=False):
        whole = "int" in variable.dtype  # a sum of shares may fall short of it
        variable.assign((np.rint(value) if whole else value).astype(variable.dtype))
    return round(float(values[-1]))


def fit(team, model, stream, steps, settings, min_negatives, signals):
    """Takes the steps of a training on several workers, as Keras' fit does on one.

    Args:
      team: Team of several workers.
      model: compiled keras.Model.
      stream: this worker's examples, in batches of its own.
      steps: callbacks.Steps; on the chief with hooks.
      settings: config.TrainConfig.
      min_negatives: see boxes.matcher.batch_weight.
      signals: callbacks.Signals.

    Raises:
      TrainingError: the loss is not finite, on workers that have no guard of their own.
      Interrupted: a worker was asked to stop; the chief has saved.
    """
    steps.set_model(model)
    model.stop_training = False
    batch = settings.batch_size // team.num_replicas
    stream = stream.rebatch(batch, drop_remainder=True) if team.num_replicas > team.num_workers else stream
    iterator = iter(team.strategy.distribute_datasets_from_function(lambda _: stream))
    take_step, sum_up = _make_step(team, model, settings.batch_size, min_negatives), _make_sum(team)
    means, count = {}, 0
    while not model.stop_training:
        with _lost_workers():
            values = take_step(iterator, tf.constant(1.0 if signals.caught else 0.0))
            values = {name: float(value) for name, value in values.items()}
        signals.agreed = values.pop("wishes") > 0
        count = count % settings.log_steps + 1
        means = {name: means.get(name, 0.0) * (count > 1) for name in values}
        means = {name: mean + (values[name] - mean) / count for name, mean in means.items()}
        steps.on_train_batch_end(None, means)
        if not team.is_chief:
            if not math.isfinite(values["loss"]):
                raise TrainingError(f"step {steps.step}: the loss is {values['loss']}; the first worker says more")
            if signals.agreed:
                signals.leave("stopped with the other workers; run the same commands to continue")
        if settings.early_stopping:  # the chief alone validates
            (stopping,) = sum_up([tf.constant(float(model.stop_training))])
            model.stop_training = stopping > 0


@contextlib.contextmanager
def _lost_workers():
    """Turns what TensorFlow says of a worker that is gone into one line."""
    try:
        yield
    except tf.errors.OpError as error:
        if not isinstance(error, _LOST) and not any(word in str(error) for word in _LOST_WORDS):
            raise
        raise EnvironmentFault(
            "another worker was lost: start the same command on each of them again, and they go on from the last "
            "checkpoint"
        ) from error


def _make_sum(team):
    """A function (tensors) -> arrays, their sums over all replicas."""

    def on_replica(own):
        own = [tf.identity(value) for value in own]  # arguments have no device to be summed on
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, own)

    compiled = tf.function(lambda own: team.strategy.run(on_replica, args=(own,)))

    def sum_up(values):
        with _lost_workers():
            summed = compiled(values)
        return [team.strategy.experimental_local_results(value)[0].numpy() for value in summed]

    return sum_up


def _make_step(team, model, batch_size, min_negatives):
    """A compiled function (iterator, wish) -> losses of the whole batch, and how many wish to stop."""

    def on_replica(batch, wish):
        images, targets, _ = batch
        replica = tf.distribute.get_replica_context()
        positives = replica.all_reduce(
            tf.distribute.ReduceOp.SUM, tf.reduce_sum(targets["box_deltas"][..., _POSITIVE])
        )
        weight = matcher.batch_weight(positives, batch_size, min_negatives) / batch_size
        with tf.GradientTape() as tape:
            outputs = model(images, training=True)
            parts = {
                name: weight * tf.reduce_sum(loss.call(targets[name], outputs[name]))
                for name, loss in model.loss.items()
            }
            total = tf.add_n([*parts.values(), *(extra / team.num_replicas for extra in model.losses)])
            scaled = model.optimizer.scale_loss(total)
        gradients = tape.gradient(scaled, model.trainable_variables)
        model.optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        sums = {"loss": total, **{f"{name}_loss": part for name, part in parts.items()}}
        sums["wishes"] = tf.identity(wish)
        return dict(zip(sums, replica.all_reduce(tf.distribute.ReduceOp.SUM, list(sums.values())), strict=True))

    @tf.function
    def take_step(iterator, wish):
        values = team.strategy.run(on_replica, args=(next(iterator), wish))
        return {name: team.strategy.experimental_local_results(value)[0] for name, value in values.items()}

    return take_step
