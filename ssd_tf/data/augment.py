"""Augmentation of the SSD paper, decided before decoding.

Expand, crop and resize are one affine map from the image to the network input. The window is drawn from the
boxes alone; only the part of the image that it shows is decoded, resized straight to its place on the canvas,
recoloured there, and padded with the mean; turns and mirrorings come last, on the small picture. All randomness
comes from one vector of uniform numbers per image.

Departures from caffe's chain: resizing is always bilinear (caffe draws one of five kinds); colours are changed
by one linear map per image, with saturation and hue as scaling and rotation of the chroma plane in YIQ
instead of HSV, and saturate once at the end instead of after every step (so contrast's place among them
does not matter); a crop must keep at least one object, as torchvision's and ssd.pytorch's do.
"""

import math
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
import tensorflow.experimental.numpy as tnp

from ssd_tf import images
from ssd_tf.boxes import ops

_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]], np.float32)
_FROM_YIQ = np.linalg.inv(_YIQ).astype(np.float32)
_MAX_ASPECT = 2.0  # caffe's batch sampler: width / height of a crop in 1/2..2 before it is limited by its scale
NUM_COLOR, NUM_POSE = 8, 4  # uniform numbers that a draw takes
_NUM_EXPAND, _NUM_PICK, _NUM_JITTER = 4, 2, 4


@dataclass(frozen=True)
class Placement:
    """Where the visible part of an image goes on the canvas, in whole pixels.

    Attributes:
      source: int32 [4], (top, left, height, width) in the image.
      target: int32 [4], the same on the canvas.
    """

    source: tf.Tensor
    target: tf.Tensor


@dataclass(frozen=True)
class Pose:
    """How a finished picture is turned over: first its axes are exchanged, then it is mirrored.

    Attributes:
      transposed, flipped, flipped_vertically: bool scalars; a quarter turn is an exchange and one mirroring.
    """

    transposed: tf.Tensor
    flipped: tf.Tensor
    flipped_vertically: tf.Tensor


def augment(sample, ignore, seed, image_size, settings, resize_rule):
    """Turns a record into one augmented training image.

    Args:
      sample: dict of records.schema.parse: image, height, width, boxes, classes.
      ignore: bool [N], boxes that are no objects to keep in view.
      seed: int64 [2]; equal seeds give equal results.
      image_size: (height, width) of the network input, pixels.
      settings: config.AugmentConfig.
      resize_rule: see images.resize.

    Returns:
      (uint8 [H, W, 3] RGB, float32 [M, 4] yxyx normalised, int32 [M] classes, bool [M] ignore); objects whose
      centre left the view are gone, ignore boxes stay while any part is visible; boxes are clipped.
    """
    num_windows = len(settings.crop_min_iou) + 1
    counts = [NUM_COLOR, _NUM_EXPAND, num_windows * settings.crop_trials * 4, _NUM_PICK, NUM_POSE, _NUM_JITTER]
    color, expand, crop, pick, orient, jitter = tf.split(tf.random.stateless_uniform([sum(counts)], seed), counts)
    pose = draw_pose(orient, settings)
    canvas = size_before(image_size, pose)
    window = tf.cond(
        jitter[0] < settings.jitter_probability,
        lambda: jittered_window(jitter[1:], upright_sides(sample, pose), settings),
        lambda: draw_window(sample["boxes"], ignore, settings, expand, crop, pick),
    )
    placement = place(window, sample["height"], sample["width"], canvas)
    matrix, shift = draw_color(color, settings)
    image = render(sample["image"], placement, canvas, resize_rule, matrix, shift)
    boxes, kept = move_boxes(sample, ignore, placement, canvas)
    image, boxes = turn_over(image, boxes, pose)
    image = tf.ensure_shape(image, [*image_size, 3])
    return image, boxes, tf.boolean_mask(sample["classes"], kept), tf.boolean_mask(ignore, kept)


def draw_pose(uniforms, settings):
    """Draws how a picture is turned and mirrored.

    Args:
      uniforms: float32 [4] in [0, 1).
      settings: config.AugmentConfig.

    Returns:
      Pose.
    """
    flipped = uniforms[0] < settings.flip_probability
    flipped_vertically = uniforms[1] < settings.vertical_flip_probability
    turned, left = uniforms[2] < settings.rotate_probability, uniforms[3] < 0.5
    return Pose(turned, flipped ^ (turned & ~left), flipped_vertically ^ (turned & left))


def size_before(size, pose):
    """Returns the (height, width) that a picture must have to have `size` when it has been turned over."""
    size = tf.convert_to_tensor(size)
    return tf.where(pose.transposed, size[::-1], size)


def turn_over(image, boxes, pose):
    """Turns and mirrors pixels and boxes.

    Args:
      image: uint8 [H, W, 3].
      boxes: float32 [N, 4], yxyx normalised.
      pose: Pose.

    Returns:
      (uint8 [H, W, 3] or [W, H, 3], float32 [N, 4]).
    """
    image, boxes = tf.cond(
        pose.transposed,
        lambda: (tf.transpose(image, [1, 0, 2]), ops.yxyx_to_xyxy(boxes, tnp)),
        lambda: (image, boxes),
    )
    image, boxes = tf.cond(
        pose.flipped, lambda: (tf.reverse(image, [1]), ops.flip(boxes, tnp)), lambda: (image, boxes)
    )
    return tf.cond(
        pose.flipped_vertically,
        lambda: (tf.reverse(image, [0]), ops.flip_vertically(boxes, tnp)),
        lambda: (image, boxes),
    )


def upright_sides(sample, pose):
    """Returns the sides of the window of area 1 whose objects are squeezed as those of an unturned image are.

    Args:
      sample: dict with height and width.
      pose: Pose.

    Returns:
      float32 [2], (height, width) in units of the image.
    """
    aspect = tf.cast(sample["width"], tf.float32) / tf.cast(sample["height"], tf.float32)
    return tf.where(pose.transposed, tf.stack([aspect, 1.0 / aspect]), 1.0)


def jittered_window(uniforms, sides, settings):
    """Draws a window of a given shape (large-scale jitter, arXiv 2012.07177).

    Args:
      uniforms: float32 [3] in [0, 1).
      sides: float32 [2], (height, width) at scale 1 in units of the image: see upright_sides.
      settings: config.AugmentConfig.

    Returns:
      float32 [4], yxyx in units of the image; reaches beyond [0, 1] where the image gets smaller.
    """
    low, high = settings.jitter_scale
    sides = sides / (low + uniforms[0] * (high - low))
    corner = uniforms[1:] * (1.0 - sides)
    return tf.concat([corner, corner + sides], 0)


def draw_window(boxes, ignore, settings, expand, crop, pick):
    """Draws what part of the plane the network sees.

    Args:
      boxes: float32 [N, 4], yxyx normalised to the image.
      ignore: bool [N].
      settings: config.AugmentConfig.
      expand, crop, pick: float32 uniform in [0, 1): [4], [windows * trials * 4], [2].

    Returns:
      float32 [4], yxyx in units of the image; reaches beyond [0, 1] where the image was expanded.
    """
    ratio = tf.where(expand[0] < settings.expand_probability, 1.0 + expand[1] * (settings.expand_max - 1.0), 1.0)
    corner = -expand[2:4] * (ratio - 1.0)
    canvas = tf.concat([corner, corner + ratio], 0)
    objects = ops.rescale(tf.boolean_mask(boxes, ~ignore), canvas, tnp)
    window = _choose_crop(objects, settings, crop, pick)
    return window * ratio + tf.tile(corner, [2])


def _choose_crop(objects, settings, crop, pick):
    """Caffe's batch sampler: for each IoU bound the first of many windows that meets it, then one of these.

    The candidates are the whole canvas, one window a bound, and one without a bound.
    """
    bounds = tf.constant([*settings.crop_min_iou, 0.0])
    windows = _random_windows(tf.reshape(crop, [-1, 4]), settings.crop_min_scale)
    overlaps = ops.iou(windows, objects, tnp)
    centres = ops.centres(objects, tnp)[None]
    inside = tf.reduce_all((centres > windows[:, None, :2]) & (centres < windows[:, None, 2:]), axis=-1)
    keeps_one = tf.reduce_any(inside, axis=1)
    # No objects: the maximum over nothing is -inf, so only the whole canvas remains.
    best = tf.where(keeps_one, tf.reduce_max(overlaps, axis=1), -1.0)
    good = tf.reshape(best, [-1, settings.crop_trials]) >= bounds[:, None]
    first = tf.argmax(tf.cast(good, tf.int32), axis=1, output_type=tf.int32)
    first += tf.range(bounds.shape[0]) * settings.crop_trials
    candidates = tf.concat([[[0.0, 0.0, 1.0, 1.0]], tf.gather(windows, first)], 0)
    possible = tf.concat([[1], tf.cast(tf.reduce_any(good, axis=1), tf.int32)], 0)
    rank = tf.cast(pick[0] * tf.cast(tf.reduce_sum(possible), tf.float32), tf.int32)
    chosen = tf.argmax(tf.cumsum(possible) > rank, output_type=tf.int32)
    return candidates[tf.where(pick[1] < settings.crop_probability, chosen, 0)]


def _random_windows(uniforms, min_scale):
    """float32 [K, 4] windows inside [0, 1]: scale in min_scale..1, aspect limited so that they fit."""
    scale = min_scale + uniforms[:, 0] * (1.0 - min_scale)
    aspect = 1 / _MAX_ASPECT + uniforms[:, 1] * (_MAX_ASPECT - 1 / _MAX_ASPECT)
    aspect = tf.clip_by_value(aspect, scale**2, 1.0 / scale**2)
    sides = tf.minimum(tf.stack([scale / tf.sqrt(aspect), scale * tf.sqrt(aspect)], axis=1), 1.0)
    corners = uniforms[:, 2:] * (1.0 - sides)
    return tf.concat([corners, corners + sides], axis=1)


def place(window, height, width, image_size):
    """Rounds a window to whole pixels of the image and of the canvas.

    Args:
      window: float32 [4], yxyx in units of the image.
      height, width: int32 scalars, pixels of the image.
      image_size: (height, width) of the canvas, pixels; ints or int32 tensor.

    Returns:
      Placement, all sizes at least 1; the map from source to target is the exact one of the boxes.
    """
    side = tf.cast(tf.stack([height, width]), tf.float32)
    canvas = tf.cast(tf.convert_to_tensor(image_size), tf.float32)
    low, high = window[:2] * side, window[2:] * side
    scale = canvas / (high - low)
    first = tf.minimum(tf.round(tf.maximum(low, 0.0)), side - 1.0)
    last = tf.maximum(tf.round(tf.minimum(high, side)), first + 1.0)
    start = tf.minimum(tf.round(tf.maximum(-low, 0.0) * scale), canvas - 1.0)
    end = tf.maximum(canvas - tf.round(tf.maximum(high - side, 0.0) * scale), start + 1.0)
    source = tf.cast(tf.concat([first, last - first], 0), tf.int32)
    return Placement(source, tf.cast(tf.concat([start, end - start], 0), tf.int32))


def move_boxes(sample, ignore, placement, image_size):
    """Moves boxes with their pixels.

    Args:
      sample: dict with boxes float32 [N, 4] (yxyx normalised), height and width.
      ignore: bool [N].
      placement: Placement.
      image_size: (height, width) of the canvas, pixels; ints or int32 tensor.

    Returns:
      (float32 [M, 4] yxyx normalised to the canvas and clipped, bool [N] which were kept).
    """
    side = tf.tile(tf.cast(tf.stack([sample["height"], sample["width"]]), tf.float32), [2])
    canvas = tf.tile(tf.cast(tf.convert_to_tensor(image_size), tf.float32), [2])
    source, target = tf.cast(placement.source, tf.float32), tf.cast(placement.target, tf.float32)
    scale = tf.tile(target[2:] / source[2:], [2])
    boxes = (sample["boxes"] * side - tf.tile(source[:2], [2])) * scale + tf.tile(target[:2], [2])
    boxes = boxes / canvas
    centres = ops.centres(boxes, tnp)
    clipped = ops.clip(boxes, tnp)
    visible = ops.area(clipped, tnp) > 0
    kept = visible & (ignore | tf.reduce_all((centres > 0) & (centres < 1), axis=1))
    return tf.boolean_mask(clipped, kept), kept


def draw_color(uniforms, settings):
    """Draws one linear colour map.

    Args:
      uniforms: float32 [8] in [0, 1).
      settings: config.AugmentConfig.

    Returns:
      (float32 [3, 3] or None, float32 scalar or None): RGB rows times the matrix plus the shift, which is the
      same for all channels (and added several times faster as a scalar); None: no change.
    """
    widths = (settings.brightness, settings.contrast, settings.saturation, settings.hue)
    if settings.color_probability == 0 or not any(widths):
        return None, None
    signed = tf.where(uniforms[:4] < settings.color_probability, uniforms[4:] * 2 - 1, 0.0)
    brightness, contrast, saturation, hue = tf.unstack(signed * tf.constant(widths))
    contrast, saturation, angle = contrast + 1, saturation + 1, hue * (math.pi / 180)
    cosine, sine = tf.cos(angle) * saturation, tf.sin(angle) * saturation
    chroma = tf.stack([[1.0, 0.0, 0.0], [0.0, cosine, -sine], [0.0, sine, cosine]])
    matrix = contrast * tf.transpose(_FROM_YIQ @ chroma @ _YIQ)
    return matrix, contrast * brightness


def render(encoded, placement, image_size, resize_rule, matrix, shift):
    """Decodes what is visible and puts it on the canvas.

    Args:
      encoded: string scalar, JPEG or PNG bytes.
      placement: Placement.
      image_size: (height, width) of the canvas; ints or int32 tensor.
      resize_rule: see images.resize.
      matrix, shift: see draw_color.

    Returns:
      uint8 [H, W, 3], RGB; the rest of the canvas is the mean colour.
    """
    part = paint(encoded, placement, resize_rule, matrix, shift)
    whole = tf.reduce_all(placement.target[2:] == image_size)
    return tf.cond(whole, lambda: part, lambda: _pad(part, placement.target, image_size))


def paint(encoded, placement, resize_rule, matrix, shift):
    """Decodes what is visible, in the size that it has on the canvas.

    Args: as render.

    Returns:
      uint8 [h, w, 3], RGB, of the placement's target.
    """
    part = images.decode_window(encoded, placement.source)
    part = images.resize(part, placement.target[2:], resize_rule)
    if matrix is None:
        return images.to_uint8(part)
    colors = tf.matmul(tf.reshape(part, [-1, 3]), matrix) + (shift + 0.5)  # + 0.5: the cast then rounds
    return tf.reshape(tf.saturate_cast(colors, tf.uint8), tf.shape(part))


def _pad(part, target, image_size):
    """Surrounds uint8 pixels with the mean colour."""
    top, left, height, width = tf.unstack(target)
    right, below = image_size[1] - left - width, image_size[0] - top - height
    middle = tf.concat([_mean_pixels(height, left), part, _mean_pixels(height, right)], axis=1)
    return tf.concat([_mean_pixels(top, image_size[1]), middle, _mean_pixels(below, image_size[1])], axis=0)


def _mean_pixels(height, width):
    return tf.broadcast_to(tf.constant(images.RGB_MEAN, tf.uint8), tf.stack([height, width, 3]))
