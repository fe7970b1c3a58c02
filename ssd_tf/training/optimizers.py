"""Learning-rate schedule, optimizer and weight decay of a recipe."""

import keras
from keras import ops
from keras.optimizers import schedules

from ssd_tf.models import detector, registry

_WARMUP_START = 1 / 3  # the first rate of a warm-up, as a fraction of the rate (mmdetection, lufficc/SSD)
_DROP = 0.1  # at each milestone of "multistep"
_RAMP = 10.0  # after t updates an average has the momentum (1 + t) / (10 + t) at most, as TensorFlow 1 had it


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

    Rates by group of layers, a decoupled weight decay that follows them, and an average of the weights that begins
    with those of the first update and has a momentum that grows: a short training does not remember its beginning.
    Keras averages at every batch, with one momentum, and puts the average in the weights' place at the end of fit.

    Args:
      rates: factor of the learning rate of each trainable variable, or None.
      decays: decoupled weight decay of each trainable variable, or None.
      options: the Keras optimizer's own.

    Attributes:
      reduce: function (gradients) -> their sums over all replicas, or None where there is one.
    """

    reduce = None

    def __init__(self, rates=None, decays=None, **options):
        super().__init__(**options)
        self.rates, self.decays = rates, decays

    def update_step(self, gradient, variable, learning_rate):
        place = self._get_variable_index(variable)
        if self.rates:
            learning_rate = ops.cast(learning_rate, variable.dtype) * self.rates[place]
        if self.decays and self.decays[place]:
            self.assign_sub(variable, variable * self.decays[place] * ops.cast(learning_rate, variable.dtype))
        super().update_step(gradient, variable, learning_rate)

    def _clip_gradients(self, grads):
        # Keras would clip the share of each replica, not their sum.
        return super()._clip_gradients(self.reduce(grads) if self.reduce else grads)

    def _all_reduce_sum_gradients(self, pairs):
        return pairs if self.reduce else super()._all_reduce_sum_gradients(pairs)

    def _update_model_variables_moving_average(self, trainable_variables):
        if not self.use_ema:
            return
        before = ops.cast(self.iterations, "float32")  # updates before this one
        momentum = ops.minimum(self.ema_momentum, (1.0 + before) / (_RAMP + before))
        momentum = ops.where(before > 0, momentum, 0.0)
        if self.gradient_accumulation_steps:
            updates = (self._iterations + 1) % self.gradient_accumulation_steps == 0
            momentum = ops.where(updates, momentum, 1.0)
        for variable, average in zip(trainable_variables, self._model_variables_moving_average, strict=True):
            average.assign(momentum * average + (1.0 - momentum) * variable)

    def finalize_variable_values(self, var_list):
        """Leaves the weights as they learned: training.averaging shows their average."""

    def get_config(self):
        own = {name: list(getattr(self, name) or ()) or None for name in ("rates", "decays")}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable("ssd_tf")
class SGD(_Grouped, keras.optimizers.SGD):
    """Keras' SGD with what a recipe asks for."""


@keras.saving.register_keras_serializable("ssd_tf")
class Adam(_Grouped, keras.optimizers.Adam):
    """Keras' Adam with what a recipe asks for."""


@keras.saving.register_keras_serializable("ssd_tf")
class RMSprop(_Grouped, keras.optimizers.RMSprop):
    """Keras' RMSprop with what a recipe asks for."""


def make_optimizer(settings):
    """Returns the Keras optimizer of config.TrainConfig `settings`, with its schedule, clipping and averaging.

    Under train.accumulate a step is still one batch: the schedule goes on with each, an update takes the learning
    rate of its last batch and the mean of their gradients, and the average moves with the updates. Batches at the
    end that are too few for an update make none.
    """
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
    rates, kernels = {}, {}
    for layer in detector.all_layers(model):
        rate = getattr(settings, f"{registry.layer_group(layer)}_rate")
        for weight in layer.trainable_weights:
            rates.setdefault(id(weight), rate)  # a layer comes before those inside it
            if weight.name.endswith("kernel"):
                kernels[id(weight)] = weight
    weights, decay = model.trainable_variables, settings.weight_decay
    if set(rates.values()) - {1.0}:
        optimizer.rates = [rates[id(weight)] for weight in weights]
    if decay and settings.optimizer == "adamw":
        optimizer.decays = [decay if id(weight) in kernels else 0.0 for weight in weights]
    elif decay:
        for weight in kernels.values():
            weight.regularizer = keras.regularizers.L2(decay / 2)
