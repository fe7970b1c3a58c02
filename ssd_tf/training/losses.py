"""The MultiBox loss as two ordinary Keras losses that return one number an image (SSD paper, equations 1-3).

Beside the paper's softmax and smooth L1: sigmoids, focal loss and the losses on the overlap of boxes.
The normaliser, all positives of the batch, comes with the data as sample weight (boxes.matcher.batch_weight), so
an image's own loss does not depend on its neighbours and the step does not depend on how a batch is split.
"""

import functools
import math

import keras
import numpy as np
from keras import ops

from ssd_tf.boxes import coder
from ssd_tf.boxes import ops as box_ops
from ssd_tf.errors import ConfigError


def make_losses(settings, anchors):
    """Makes the losses of a recipe.

    Args:
      settings: config.LossConfig.
      anchors: float32 [A, 4], yxyx normalised.

    Returns:
      {output name: keras.losses.Loss}, for Model.compile.
    """
    return {
        "class_logits": ClassLoss(
            settings.negative_ratio,
            settings.min_negatives,
            settings.classification,
            settings.label_smoothing,
            settings.focal_alpha,
            settings.focal_gamma,
            settings.class_weights,
        ),
        "box_deltas": BoxLoss(settings.box_weight, settings.box, anchors),
    }


def initial_logit(settings):
    """Returns what class logits start from: under focal loss every score is the prior (arXiv 1708.02002, 4.1)."""
    prior = settings.focal_prior
    return -math.log((1 - prior) / prior) if settings.classification == "focal" else 0.0


def log_softmax_losses(logits, labels, smoothing=0.0):
    """Returns the cross-entropy of each anchor.

    Args:
      logits: float32 [B, A, K], K = C + 1.
      labels: int32 [B, A], 0..C.
      smoothing: e; the target is 1 - e on the label and e / K on all columns, the label's among them.

    Returns:
      float32 [B, A].
    """
    chosen = ops.take_along_axis(logits, ops.expand_dims(labels, -1), axis=-1)[..., 0]
    losses = ops.logsumexp(logits, axis=-1) - chosen
    return losses + smoothing * (chosen - ops.mean(logits, axis=-1)) if smoothing else losses


def sigmoid_losses(logits, labels, smoothing=0.0):
    """Returns the binary cross-entropy of each anchor, summed over the classes.

    Args:
      logits: float32 [B, A, C], column c - 1 is class c.
      labels: int32 [B, A], 1..C; any other is no class.
      smoothing: e; the target of a column is y (1 - e) + e / 2.

    Returns:
      float32 [B, A].
    """
    _, errors = _signed_errors(logits, labels)
    return ops.sum(_binary_losses(errors, smoothing), axis=-1)


def focal_losses(logits, labels, alpha, gamma, smoothing=0.0):
    """Returns the focal loss (arXiv 1708.02002, equation 5) of each anchor, summed over the classes.

    Args:
      logits: float32 [B, A, C], column c - 1 is class c.
      labels: int32 [B, A], 1..C; any other is no class.
      alpha: weight of the label's column; the others have 1 - alpha.
      gamma: exponent of the probability of error, which weighs the cross-entropy.
      smoothing: e; the target in the cross-entropy, not in the weights, is y (1 - e) + e / 2.

    Returns:
      float32 [B, A].
    """
    is_label, errors = _signed_errors(logits, labels)
    # In logarithms: the power's own gradient is infinite at 0 for gamma < 1.
    weights = ops.exp(gamma * (errors - ops.softplus(errors)))
    losses = weights * _binary_losses(errors, smoothing)
    return ops.sum(ops.where(is_label, alpha * losses, (1 - alpha) * losses), axis=-1)


def _signed_errors(logits, labels):
    """bool [B, A, C], true on the label; and the logits with the sign that makes larger worse."""
    is_label = ops.expand_dims(labels, -1) == ops.arange(1, logits.shape[-1] + 1, dtype="int32")
    return is_label, ops.where(is_label, -logits, logits)


def _binary_losses(errors, smoothing):
    """Cross-entropy of sigmoids, from signed errors; exact at both ends, as nothing large is subtracted."""
    losses = ops.softplus(errors)
    return losses - smoothing / 2 * errors if smoothing else losses


def mine_negatives(losses, candidates, num_wanted):
    """Chooses the hardest negatives of each image.

    Args:
      losses: float32 [B, A], finite.
      candidates: bool [B, A].
      num_wanted: int32 [B], how many; fewer are chosen where there are fewer candidates.

    Returns:
      bool [B, A], exactly min(num_wanted, candidates) True in each row: the largest losses, on equal losses the
      lower index.
    """
    losses = ops.where(candidates, losses, -1.0)  # a cross-entropy is never negative
    num_wanted = ops.minimum(num_wanted, ops.sum(ops.cast(candidates, "int32"), axis=1))
    ascending = ops.sort(losses, axis=1)
    places = ops.clip(losses.shape[1] - num_wanted, 0, losses.shape[1] - 1)
    least = ops.take_along_axis(ascending, ops.expand_dims(places, 1), axis=1)
    above, equal = losses > least, losses == least
    num_equal = ops.expand_dims(num_wanted, 1) - ops.sum(ops.cast(above, "int32"), axis=1, keepdims=True)
    chosen = above | (equal & (ops.cumsum(ops.cast(equal, "int32"), axis=1) <= num_equal))
    return chosen & candidates & ops.expand_dims(num_wanted > 0, 1)


# Per-anchor losses of config.LossConfig.classification.
_CLASS_LOSSES = {"softmax": log_softmax_losses, "sigmoid": sigmoid_losses, "focal": focal_losses}


@keras.saving.register_keras_serializable("ssd_tf")
class ClassLoss(keras.losses.Loss):
    """Classification loss: of matched anchors and of the hardest negatives (SSD paper, section 2.2), or focal.

    Args:
      negative_ratio: negatives mined for each positive of the same image; by their loss.
      min_negatives: least number mined in an image, positives or not.
      kind: "softmax"; "sigmoid", one for each class; or "focal", sigmoids weighed by focal loss over all anchors:
        nothing is mined.
      label_smoothing: share of the target that is spread: with softmax evenly over all columns (1 - e on the label
        and e / K on all K columns), else over yes and no (y (1 - e) + e / 2).
      focal_alpha: weight of the label's column under "focal"; the other columns have 1 - alpha.
      focal_gamma: exponent of the probability of error under "focal".
      class_weights: C factors, each on the losses of the anchors matched to that class, or () for none. Background
        has 1, and negatives are mined by their loss without factors.

    Called with y_true int [B, A] (0 background, 1..C, -1 ignored: neither trained nor mined) and y_pred
    float [B, A, C + 1] (0 is background), [B, A, C] for sigmoids (column c - 1 is class c); returns float32 [B],
    sums over the anchors.

    Raises:
      ConfigError: there is no such kind.
    """

    def __init__(
        self,
        negative_ratio=3.0,
        min_negatives=0,
        kind="softmax",
        label_smoothing=0.0,
        focal_alpha=0.25,
        focal_gamma=2.0,
        class_weights=(),
        name="class_loss",
        **options,
    ):
        super().__init__(name=name, **options)
        _check_kind("classification", kind, _CLASS_LOSSES)
        self.negative_ratio, self.min_negatives = negative_ratio, min_negatives
        self.kind, self.label_smoothing = kind, label_smoothing
        self.focal_alpha, self.focal_gamma = focal_alpha, focal_gamma
        self.class_weights = tuple(class_weights)

    def call(self, y_true, y_pred):
        labels = ops.cast(y_true, "int32")
        options = {"alpha": self.focal_alpha, "gamma": self.focal_gamma} if self.kind == "focal" else {}
        anchor_losses = _CLASS_LOSSES[self.kind]
        classes = ops.maximum(labels, 0)
        losses = anchor_losses(y_pred, classes, smoothing=self.label_smoothing, **options)
        chosen = labels >= 0 if self.kind == "focal" else self._positives_and_mined(labels, losses)
        if self.class_weights:
            losses = losses * ops.take(ops.convert_to_tensor((1.0, *self.class_weights), losses.dtype), classes)
        return ops.sum(ops.where(chosen, losses, 0.0), axis=1)

    def _positives_and_mined(self, labels, losses):
        positive = labels > 0
        num_positives = ops.sum(ops.cast(positive, "float32"), axis=1)
        num_wanted = ops.maximum(ops.cast(num_positives * self.negative_ratio, "int32"), self.min_negatives)
        return positive | mine_negatives(ops.stop_gradient(losses), labels == 0, num_wanted)

    def get_config(self):
        names = "negative_ratio", "min_negatives", "kind", "label_smoothing", "focal_alpha", "focal_gamma"
        names += ("class_weights",)
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


# How well a predicted box fits, for the losses that are 1 less that; config.LossConfig.box.
_OVERLAPS = {
    "giou": box_ops.generalized_iou,
    "diou": box_ops.distance_iou,
    "ciou": functools.partial(box_ops.complete_iou, as_constant=ops.stop_gradient),
}


@keras.saving.register_keras_serializable("ssd_tf")
class BoxLoss(keras.losses.Loss):
    """Box loss summed over the matched anchors.

    Args:
      weight: factor on the whole (alpha in the paper).
      kind: "smooth_l1" with beta 1, summed over the coordinates (SSD paper, equation 2); or "giou", "diou",
        "ciou": 1 - GIoU (arXiv 1902.09630), 1 - DIoU, 1 - CIoU (1911.08287) of the decoded boxes.
      anchors: float32 [A, 4], yxyx normalised, which the deltas refer to; "smooth_l1" needs none.

    Called with y_true float [B, A, 5] (four deltas, then 1 where matched) and y_pred float [B, A, 4]; returns
    float32 [B], exactly 0 for an image without matches. A size beyond the clamp of coder.decode has no gradient.

    Raises:
      ConfigError: there is no such kind, or it needs anchors.
    """

    def __init__(self, weight=1.0, kind="smooth_l1", anchors=None, name="box_loss", **options):
        super().__init__(name=name, **options)
        _check_kind("box", kind, ("smooth_l1", *_OVERLAPS))
        if kind in _OVERLAPS and anchors is None:
            raise ConfigError(f"loss.box={kind} needs the anchors: BoxLoss(weight, kind, anchors)")
        self.weight, self.kind = weight, kind
        self.anchors = np.asarray(anchors, "float32") if kind in _OVERLAPS else None

    def call(self, y_true, y_pred):
        if self.kind in _OVERLAPS:
            losses = self._misfits(y_true, y_pred)
            return self.weight * ops.sum(ops.where(y_true[..., 4] > 0, losses, 0.0), axis=1)
        distances = ops.abs(y_true[..., :4] - y_pred)
        losses = ops.where(distances < 1, 0.5 * ops.square(distances), distances - 0.5)
        return self.weight * ops.sum(ops.where(y_true[..., 4:] > 0, losses, 0.0), axis=(1, 2))

    def _misfits(self, y_true, y_pred):
        """float [B, A] in [0, 2.5]; nothing that is not matched comes near the formulas or their gradients."""
        matched = y_true[..., 4:] > 0
        pairs = [ops.where(matched, deltas, 0.0) for deltas in (y_pred, y_true[..., :4])]
        anchors = ops.convert_to_tensor(self.anchors)
        return 1 - _OVERLAPS[self.kind](*(coder.decode(deltas, anchors, ops) for deltas in pairs), ops)

    def get_config(self):
        anchors = None if self.anchors is None else self.anchors.tolist()
        return {**super().get_config(), "weight": self.weight, "kind": self.kind, "anchors": anchors}


def _check_kind(key, kind, kinds):
    if kind not in kinds:
        raise ConfigError(f"loss.{key}: {kind!r} is none of {', '.join(kinds)}")
