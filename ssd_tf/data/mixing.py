"""Training images made of several: mosaic and mixup."""

import tensorflow as tf
import tensorflow.experimental.numpy as tnp

from ssd_tf.boxes import ops
from ssd_tf.data import augment

NUM_IMAGES = 4  # of a mosaic
_CENTRE = 0.25, 0.75  # where a mosaic's four images meet, as a fraction of the canvas
_SHARES = (augment.NUM_COLOR, 3, augment.NUM_POSE)  # uniform numbers of a part: colours, window, pose
_fold_in = tf.random.experimental.stateless_fold_in


def mix(parts, may_mix, image_size, settings, resize_rule):
    """Draws one training image out of several records.

    Args:
      parts: NUM_IMAGES of (sample, ignore, seed) as augment.augment takes them; what is drawn follows from the
        first one's seed.
      may_mix: bool scalar; False draws the first alone.
      image_size: (height, width) of the network input, pixels.
      settings: config.AugmentConfig.
      resize_rule: see images.resize.

    Returns:
      as augment.augment.
    """
    style = image_size, settings, resize_rule
    seed = parts[0][2]
    choices = tf.random.stateless_uniform([2], _fold_in(seed, 1))
    drawn = tf.cond(
        may_mix & (choices[0] < settings.mosaic_probability),
        lambda: mosaic(parts, _fold_in(seed, 2), *style),
        lambda: augment.augment(*parts[0], *style),
    )
    return tf.cond(
        may_mix & (choices[1] < settings.mixup_probability),
        lambda: mixup(drawn, parts[1], _fold_in(seed, 3), *style),
        lambda: drawn,
    )


def mosaic(parts, seed, image_size, settings, resize_rule):
    """Draws four images around one point, each filling its part of the canvas (arXiv 2004.10934).

    Args:
      parts: see mix.
      seed: int64 [2].
      image_size, settings, resize_rule: see mix.

    Returns:
      as augment.augment.
    """
    size = tf.constant(image_size, tf.float32)
    uniforms = tf.random.stateless_uniform([2 + NUM_IMAGES * sum(_SHARES)], seed)
    low, high = _CENTRE
    centre = tf.round(size * (low + uniforms[:2] * (high - low)))
    shares = tf.split(uniforms[2:], NUM_IMAGES)
    pictures, objects = [], []
    for place, (sample, ignore, _) in enumerate(parts):
        beyond = tf.constant(divmod(place, 2)) > 0  # whether the part lies below, or right of, the centre
        corner, extent = tf.where(beyond, centre, 0.0), tf.where(beyond, size - centre, centre)
        picture, boxes, *rest = _draw_part(sample, ignore, shares[place], extent, size, settings, resize_rule)
        canvas = tf.concat([-corner, size - corner], 0) / tf.tile(extent, [2])  # seen from the part
        pictures.append(picture)
        objects.append((ops.rescale(boxes, canvas, tnp), *rest))
    image = tf.concat([tf.concat(pictures[:2], 1), tf.concat(pictures[2:], 1)], 0)
    return tf.ensure_shape(image, [*image_size, 3]), *(
        tf.concat(column, 0) for column in zip(*objects, strict=True)
    )


def _draw_part(sample, ignore, uniforms, extent, size, settings, resize_rule):
    """One image of a mosaic, cut to fill `extent`: as large as alone, or smaller where that fills it too."""
    color, place, orient = tf.split(uniforms, _SHARES)
    pose = augment.draw_pose(orient, settings)
    extent, size = augment.size_before(extent, pose), augment.size_before(size, pose)
    window = _draw_window(place, augment.upright_sides(sample, pose) * extent / size)
    pixels = tf.cast(extent, tf.int32)
    placement = augment.place(window, sample["height"], sample["width"], pixels)
    image = augment.paint(sample["image"], placement, resize_rule, *augment.draw_color(color, settings))
    boxes, kept = augment.move_boxes(sample, ignore, placement, pixels)
    image, boxes = augment.turn_over(image, boxes, pose)
    return image, boxes, tf.boolean_mask(sample["classes"], kept), tf.boolean_mask(ignore, kept)


def _draw_window(uniforms, sides):
    """float32 [4] inside [0, 1], of the shape `sides`: from these up to the largest that an image holds."""
    largest = tf.reduce_max(sides)
    scale = largest + uniforms[0] * tf.maximum(1.0 - largest, 0.0)
    sides = sides / scale
    corner = uniforms[1:] * (1.0 - sides)
    return tf.concat([corner, corner + sides], 0)


def mixup(drawn, part, seed, image_size, settings, resize_rule):
    """Blends a second image into one, with the objects of both (arXiv 1902.04103).

    Args:
      drawn: what augment.augment returns.
      part: (sample, ignore, seed) of the second; another seed than its own decides how it is drawn.
      seed: int64 [2]; of the shares, and of the second image's augmentation.
      image_size, settings, resize_rule: see mix.

    Returns:
      as augment.augment.
    """
    second = augment.augment(*part[:2], seed, image_size, settings, resize_rule)
    share = draw_share(_fold_in(seed, 1), settings.mixup_alpha)
    blend = share * tf.cast(drawn[0], tf.float32) + (1.0 - share) * tf.cast(second[0], tf.float32)
    objects = (tf.concat(pair, 0) for pair in zip(drawn[1:], second[1:], strict=True))
    return tf.cast(blend + 0.5, tf.uint8), *objects  # + 0.5: the cast then rounds


def draw_share(seed, alpha):
    """Draws how much of the first image a mixup shows.

    Args:
      seed: int64 [2].
      alpha: float > 0.

    Returns:
      float32 scalar in [0, 1], of the distribution Beta(alpha, alpha).
    """
    # Gamma(alpha) is Gamma(alpha + 1) times a power of a uniform number. Taken as logarithms, as both numbers of a
    # ratio may be too small for float32 where alpha is small.
    gammas = tf.random.stateless_gamma([2], seed, alpha + 1.0)
    logarithms = tf.math.log(gammas) + tf.math.log1p(-tf.random.stateless_uniform([2], _fold_in(seed, 1))) / alpha
    return tf.sigmoid(logarithms[0] - logarithms[1])
