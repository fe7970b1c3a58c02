"""The MultiBox loss as two ordinary Keras losses that return one number an image (SSD paper, equations 1-3).

The normaliser, all positives of the batch, comes with the data as sample weight (boxes.matcher.batch_weight), so
an image's own loss does not depend on its neighbours and the step does not depend on how a batch is split.
"""

import keras
from keras import ops


def log_softmax_losses(logits, labels):
    """Returns the cross-entropy of each anchor.

    Args:
      logits: float32 [B, A, C + 1].
      labels: int32 [B, A], 0..C.

    Returns:
      float32 [B, A].
    """
    chosen = ops.take_along_axis(logits, ops.expand_dims(labels, -1), axis=-1)[..., 0]
    return ops.logsumexp(logits, axis=-1) - chosen


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


@keras.saving.register_keras_serializable("ssd_tf")
class ClassLoss(keras.losses.Loss):
    """Softmax cross-entropy of matched anchors and of the hardest negatives (SSD paper, section 2.2).

    Args:
      negative_ratio: negatives mined for each positive of the same image.
      min_negatives: least number mined in an image, positives or not.

    Called with y_true int [B, A] (0 background, 1..C, -1 ignored: neither trained nor mined) and y_pred
    float [B, A, C + 1]; returns float32 [B], sums over the anchors.
    """

    def __init__(self, negative_ratio=3.0, min_negatives=0, name="class_loss", **options):
        super().__init__(name=name, **options)
        self.negative_ratio, self.min_negatives = negative_ratio, min_negatives

    def call(self, y_true, y_pred):
        labels = ops.cast(y_true, "int32")
        losses = log_softmax_losses(y_pred, ops.maximum(labels, 0))
        positive = labels > 0
        num_positives = ops.sum(ops.cast(positive, "float32"), axis=1)
        num_wanted = ops.maximum(ops.cast(num_positives * self.negative_ratio, "int32"), self.min_negatives)
        mined = mine_negatives(ops.stop_gradient(losses), labels == 0, num_wanted)
        return ops.sum(ops.where(positive | mined, losses, 0.0), axis=1)

    def get_config(self):
        own = {"negative_ratio": self.negative_ratio, "min_negatives": self.min_negatives}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable("ssd_tf")
class BoxLoss(keras.losses.Loss):
    """Smooth L1 (beta 1) summed over the coordinates of the matched anchors (SSD paper, equation 2).

    Args:
      weight: factor on the whole (alpha in the paper).

    Called with y_true float [B, A, 5] (four deltas, then 1 where matched) and y_pred float [B, A, 4]; returns
    float32 [B], exactly 0 for an image without matches.
    """

    def __init__(self, weight=1.0, name="box_loss", **options):
        super().__init__(name=name, **options)
        self.weight = weight

    def call(self, y_true, y_pred):
        distances = ops.abs(y_true[..., :4] - y_pred)
        losses = ops.where(distances < 1, 0.5 * ops.square(distances), distances - 0.5)
        return self.weight * ops.sum(ops.where(y_true[..., 4:] > 0, losses, 0.0), axis=(1, 2))

    def get_config(self):
        return {**super().get_config(), "weight": self.weight}
