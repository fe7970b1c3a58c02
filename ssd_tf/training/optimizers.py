"""Learning-rate schedule, optimizer and weight decay of a recipe."""

import keras
from keras import ops
from keras.optimizers import schedules

from ssd_tf.models.detector import all_layers

_WARMUP_START = 1 / 3  # the first rate of a warm-up, as a fraction of the rate (mmdetection, lufficc/SSD)
_DROP = 0.1  # at each milestone of "multistep"


@keras.saving.register_keras_serializable("ssd_tf")
class Schedule(schedules.LearningRateSchedule):
    """A linear warm-up in front of a Keras schedule.

    Args:
      schedule: keras LearningRateSchedule over the steps after the warm-up.
      warmup_steps: steps over which the rate grows to the schedule's first one.
    """

    def __init__(self, schedule, warmup_steps):
        self.schedule, self.warmup_steps = schedule, warmup_steps

    def __call__(self, step):
        step = ops.cast(step, "float32")
        done = ops.minimum(step / max(self.warmup_steps, 1), 1.0) if self.warmup_steps else 1.0
        rate = self.schedule(ops.maximum(step - self.warmup_steps, 0.0))
        return rate * (_WARMUP_START + (1 - _WARMUP_START) * done)

    def get_config(self):
        return {"schedule": schedules.serialize(self.schedule), "warmup_steps": self.warmup_steps}

    @classmethod
    def from_config(cls, config):
        return cls(schedules.deserialize(config["schedule"]), config["warmup_steps"])


def make_schedule(settings):
    """Returns the Schedule of config.TrainConfig `settings`, whose fractions become steps."""
    warmup_steps = round(settings.warmup * settings.steps)
    rate, rest = settings.learning_rate, max(settings.steps - warmup_steps, 1)
    if settings.schedule == "cosine":
        after = schedules.CosineDecay(rate, rest)
    elif settings.schedule == "multistep":
        edges = [round(milestone * settings.steps) - warmup_steps for milestone in settings.milestones]
        after = schedules.PiecewiseConstantDecay(edges, [rate * _DROP**drop for drop in range(len(edges) + 1)])
    else:
        after = schedules.PiecewiseConstantDecay([1], [rate, rate])
    return Schedule(after, warmup_steps)


def make_optimizer(settings):
    """Returns SGD with momentum and clipping by global norm for config.TrainConfig `settings`."""
    return keras.optimizers.SGD(
        make_schedule(settings), momentum=settings.momentum, global_clipnorm=settings.clip_norm or None
    )


def add_weight_decay(model, decay):
    """Adds decay / 2 * sum(w^2) of every trainable kernel to the loss, as caffe's weight_decay does.

    Keras' own decoupled decay is ten times weaker under momentum .9. Biases and norms are left alone.

    Args:
      model: keras.Model.
      decay: caffe's weight_decay.
    """
    for layer in all_layers(model):
        for weight in layer.trainable_weights:
            if decay and weight.name.endswith("kernel"):
                weight.regularizer = keras.regularizers.L2(decay / 2)
