"""Learning-rate schedule, optimizer and weight decay of a recipe."""

import keras
from keras import ops
from keras.optimizers import schedules

from ssd_tf.models import detector, registry

_WARMUP_START = 1 / 3  # the first rate of a warm-up, as a fraction of the rate (mmdetection, lufficc/SSD)
_DROP = 0.1  # at each milestone of "multistep"
_RAMP = 10.0  # an average over t steps is given the momentum (1 + t) / (10 + t) at most, as TensorFlow 1 did


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
        after = schedules.CosineDecay(rate, rest, settings.final_rate)
    elif settings.schedule == "exponential":
        after = schedules.ExponentialDecay(rate, rest, settings.final_rate)
    elif settings.schedule == "polynomial":
        after = schedules.PolynomialDecay(rate, rest, rate * settings.final_rate, settings.power)
    elif settings.schedule == "multistep":
        edges = [round(milestone * settings.steps) - warmup_steps for milestone in settings.milestones]
        after = schedules.PiecewiseConstantDecay(edges, [rate * _DROP**drop for drop in range(len(edges) + 1)])
    else:
        after = schedules.PiecewiseConstantDecay([1], [rate, rate])
    return Schedule(after, warmup_steps)


class _Grouped:
    """What a recipe asks of any Keras optimizer, put in front of its class.

    Rates by group of layers, a decoupled weight decay that follows them, and an average of the weights whose
    momentum grows from .1, so that a short training is not remembered by its first weights.
    """

    rates, decays = None, None  # factor of the learning rate and decoupled decay of each trainable variable

    def update_step(self, gradient, variable, learning_rate):
        if self.rates:
            place = self._get_variable_index(variable)
            learning_rate = ops.cast(learning_rate, variable.dtype) * self.rates[place]
            if self.decays[place]:
                self.assign_sub(variable, variable * learning_rate * self.decays[place])
        super().update_step(gradient, variable, learning_rate)

    @property
    def ema_momentum(self):
        done = ops.cast(self.iterations, "float32")
        return ops.minimum(self._ema_momentum, (1.0 + done) / (_RAMP + done)) if self.use_ema else 0.0

    @ema_momentum.setter
    def ema_momentum(self, value):
        self._ema_momentum = value


class SGD(_Grouped, keras.optimizers.SGD):
    pass


class Adam(_Grouped, keras.optimizers.Adam):
    pass


class RMSprop(_Grouped, keras.optimizers.RMSprop):
    pass


def make_optimizer(settings):
    """Returns the Keras optimizer of config.TrainConfig `settings`, with its schedule, clipping and averaging."""
    common = {
        "learning_rate": make_schedule(settings),
        "global_clipnorm": settings.clip_norm or None,
        "gradient_accumulation_steps": settings.accumulate if settings.accumulate > 1 else None,
        "use_ema": settings.ema > 0,
        "ema_momentum": settings.ema,
    }
    momentum, square, epsilon = settings.momentum, settings.square_momentum, settings.epsilon
    if settings.optimizer == "sgd":
        return SGD(momentum=momentum, **common)
    if settings.optimizer == "rmsprop":
        return RMSprop(rho=square or 0.9, momentum=momentum, epsilon=epsilon, **common)
    return Adam(beta_1=momentum, beta_2=square or 0.999, epsilon=epsilon, **common)


def fit_to(optimizer, model, settings):
    """Gives each trainable variable of a model its group's learning rate and its weight decay.

    Weight decay is decay / 2 * sum(w^2) of every trainable kernel in the loss, as caffe has it: Keras' own
    decoupled decay is ten times weaker under momentum .9. "adamw" decouples it (arXiv 1711.05101): every step
    takes rate * decay * w. Biases and norms are left alone.

    Args:
      optimizer: of make_optimizer, not yet built.
      model: keras.Model of models.detector, whose frozen layers are frozen already.
      settings: config.TrainConfig.
    """
    rates, kernels = {}, []
    for layer in detector.all_layers(model):
        rate = getattr(settings, f"{registry.layer_group(layer)}_rate")
        for weight in layer.trainable_weights:
            rates[id(weight)] = rate
            if weight.name.endswith("kernel"):
                kernels.append(weight)
    decay, decoupled = settings.weight_decay, settings.optimizer == "adamw"
    if decay and not decoupled:
        for weight in kernels:
            weight.regularizer = keras.regularizers.L2(decay / 2)
    decayed = {id(weight) for weight in kernels} if decoupled else ()
    if decoupled or set(rates.values()) != {1.0}:
        weights = model.trainable_variables
        optimizer.rates = [rates[id(weight)] for weight in weights]
        optimizer.decays = [decay if id(weight) in decayed else 0.0 for weight in weights]
