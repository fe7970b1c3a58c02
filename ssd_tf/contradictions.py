"""Settings of a Config that contradict each other: each alone is valid, together they cannot be meant."""

import itertools

from ssd_tf.errors import ConfigError


def check(config, groups):
    """Raises ConfigError for the first contradiction; names the keys.

    Args:
      config: config.Config whose leaves are valid, each by itself.
      groups: names of all groups of layers.
    """
    train = config.train
    parts = (_model(config), _loss(config), _augmentation(config.augment))
    for messages in (*parts, _schedule(train), _optimizer(train), _freezing(train, groups)):
        for message in messages:
            raise ConfigError(message)


def _model(config):
    model = config.model
    if model.preprocessing == "custom" and len(model.input_mean) != 3:
        yield "model.preprocessing=custom needs model.input_mean, three numbers (R, G, B)"
    if model.background_columns > 1 and not config.loss.has_background:
        yield f"model.background_columns: loss.classification={config.loss.classification} has no background"
    if model.dual_path and model.padding != "same":
        yield "model.dual_path takes the rows and columns that model.padding=same would"
    if model.heads == "shared" and model.last_head != "same":
        yield "model.last_head: shared heads are the same on every level"


def _loss(config):
    if config.loss.classification == "focal" and config.loss.min_negatives:
        yield "loss.min_negatives is for mined losses; loss.classification=focal mines nothing"
    num_weights, num_classes = len(config.loss.class_weights), config.model.num_classes
    if num_weights and num_classes not in (0, num_weights):
        yield f"loss.class_weights has {num_weights} entries for {num_classes} classes, it needs one for each"


def _augmentation(augment):
    low, high = augment.jitter_scale
    if low > high:
        yield f"augment.jitter_scale: {low:g} is more than {high:g}: the smallest scale comes first"
    for name in ("mosaic_probability", "mixup_probability"):
        if getattr(augment, name) and augment.plain_last == 1:
            yield f"augment.{name}: augment.plain_last=1 leaves no step to it"


def _schedule(train):
    shape, milestones = train.schedule, train.milestones
    if any(second <= first for first, second in itertools.pairwise(milestones)):
        yield "train.milestones must increase"
    if train.warmup >= 1 and shape != "constant":
        yield f"train.warmup=1 leaves no step to train.schedule={shape}"
    if shape == "multistep":
        yield from _milestones(train)
    if shape == "exponential" and not train.final_rate:
        yield "train.schedule=exponential needs train.final_rate above 0, which it ends at (for example 0.01)"
    if shape in ("multistep", "constant") and train.final_rate:
        yield f"train.final_rate: train.schedule={shape} does not end at a rate of its own"
    if shape != "polynomial" and train.power != 1:
        yield f"train.power is for train.schedule=polynomial, this one is {shape}"


def _milestones(train):
    if not train.milestones:
        yield "train.schedule=multistep needs train.milestones"
    elif train.milestones[0] <= train.warmup:
        yield f"train.milestones: {train.milestones[0]:g} is not after the warm-up, train.warmup={train.warmup:g}"
    elif train.milestones[-1] >= 1:
        yield "train.milestones: 1 is the end of the training, nothing is left to learn at a lower rate"


def _optimizer(train):
    kind, plain = train.optimizer, type(train)
    if kind in ("adam", "adamw") and train.momentum == 1:
        yield f"train.momentum=1: it is beta_1 of train.optimizer={kind}, which would divide by 0"
    if kind != "sgd" and train.square_momentum == 1:
        yield f"train.square_momentum=1: train.optimizer={kind} would never see a gradient's size"
    for name in ("square_momentum", "epsilon"):
        if kind == "sgd" and getattr(train, name) != getattr(plain, name):
            yield f"train.{name}: train.optimizer=sgd has none"
    if 0 < train.steps < train.accumulate:
        yield f"train.accumulate={train.accumulate}: train.steps={train.steps} would make no update"


def _freezing(train, groups):
    if set(train.freeze) == set(groups):
        yield "train.freeze holds every group of layers: nothing would learn"
    for group in train.freeze:
        if getattr(train, f"{group}_rate") != 1:
            yield f"train.{group}_rate: train.freeze holds {group}, which does not learn"
    if "backbone" in train.freeze and not train.freeze_batch_norm:
        yield "train.freeze_batch_norm=false: train.freeze holds backbone, and its batch norms with it"
