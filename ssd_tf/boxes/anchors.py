"""Anchors (default boxes): which shapes stand on every cell of every feature map.

Order: levels fine to coarse, rows, columns, shapes. Shapes of a cell in caffe's order: the square of the
level's size, the square of the geometric mean with the next size, then every ratio r and 1/r. In the order of the
TF Object Detection API the second of these comes last.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from ssd_tf.errors import ConfigError, suggest

CLIP_MODES = ("none", "corners", "size", "centre_size")
ORDERS = ("caffe", "tf_od")


@dataclass(frozen=True)
class AnchorSpec:
    """Shapes and placement of anchors, a tuple entry a level.

    Attributes:
      sizes: side of the small square, as a fraction of the shorter image side.
      next_sizes: the size that the large square is the geometric mean with.
      ratios: width / height ratios > 1; each adds two shapes.
      steps: distance of neighbouring centres in pixels, or () for image side / cells.
      offset: place of the centre inside its cell.
      clip: "none"; "corners" cuts boxes to the image; "size" limits height and width to 1 (torchvision);
        "centre_size" limits centre, height and width to [0, 1] (ssd.pytorch, pytorch-ssd).
      fixed_steps: the steps hold whatever the map sizes are (weights trained elsewhere expect them).
      order: "caffe"; or "tf_od", whose finest level has three shapes only: a square of half the size, and a wide
        and a tall one.
    """

    sizes: tuple[float, ...]
    next_sizes: tuple[float, ...]
    ratios: tuple[tuple[float, ...], ...]
    steps: tuple[float, ...] = ()
    offset: float = 0.5
    clip: str = "none"
    fixed_steps: bool = False
    order: str = "caffe"

    def __post_init__(self):
        counts = {len(self.sizes), len(self.next_sizes), len(self.ratios), len(self.steps) or len(self.sizes)}
        if len(counts) > 1:
            raise ConfigError(
                "anchors: sizes (one more than levels), ratios and steps disagree in their number of levels: "
                f"{len(self.sizes)} sizes, {len(self.ratios)} ratios, {len(self.steps)} steps"
            )
        if self.clip not in CLIP_MODES:
            raise ConfigError(f"anchors.clip: {self.clip!r} is none of {', '.join(CLIP_MODES)}")
        if self.order not in ORDERS:
            raise ConfigError(f"anchors: order {self.order!r} is none of {', '.join(ORDERS)}")


def chain(sizes, ratios, **options):
    """Returns an AnchorSpec whose level k reaches from sizes[k] to sizes[k + 1]."""
    return AnchorSpec(tuple(sizes[:-1]), tuple(sizes[1:]), tuple(map(tuple, ratios)), **options)


def _standard_ratios(num_levels):
    """4 shapes on the first and the last two levels, 6 between (SSD paper, section 3.1)."""
    outer = {0, num_levels - 2, num_levels - 1}
    return tuple((2.0,) if level in outer else (2.0, 3.0) for level in range(num_levels))


def _pixels(side, *values):
    return tuple(value / side for value in values)


_STEPS_300 = (8.0, 16.0, 32.0, 64.0, 100.0, 300.0)
_STEPS_512 = (8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)
_MOBILE_SIZES = (60, 105, 150, 195, 240, 285, 330)

# Sizes and steps as published: caffe SSD (VOC, COCO), pytorch-ssd (mobile300), lufficc/SSD (mobile320),
# and the d2l.ai course (tiny256, whose large squares are given instead of derived).
PRESETS = {
    "ssd300_voc": chain(_pixels(300, 30, 60, 111, 162, 213, 264, 315), _standard_ratios(6), steps=_STEPS_300),
    "ssd300_coco": chain(_pixels(300, 21, 45, 99, 153, 207, 261, 315), _standard_ratios(6), steps=_STEPS_300),
    "ssd512_voc": chain(
        _pixels(512, 35.84, 76.8, 153.6, 230.4, 307.2, 384, 460.8, 537.6), _standard_ratios(7), steps=_STEPS_512
    ),
    "ssd512_coco": chain(
        _pixels(512, 20.48, 51.2, 133.12, 215.04, 296.96, 378.88, 460.8, 542.72),
        _standard_ratios(7),
        steps=_STEPS_512,
    ),
    "mobile300": chain(
        _pixels(300, *_MOBILE_SIZES),
        [(2.0, 3.0)] * 6,
        steps=(16.0, 32.0, 64.0, 100.0, 150.0, 300.0),
        clip="centre_size",
        fixed_steps=True,
    ),
    "mobile320": chain(
        _pixels(320, *_MOBILE_SIZES),
        [(2.0, 3.0)] * 6,
        steps=(16.0, 32.0, 64.0, 107.0, 160.0, 320.0),
        clip="size",
        fixed_steps=True,
    ),
    # The API's SSD anchor generator: sizes from .2 to .95, the last large square's from there to 1.
    "tf_od": chain((0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.0), [(2.0,)] + [(2.0, 3.0)] * 5, order="tf_od"),
    "tiny256": AnchorSpec(
        sizes=(0.2, 0.37, 0.54, 0.71, 0.88),
        next_sizes=(0.272**2 / 0.2, 0.447**2 / 0.37, 0.619**2 / 0.54, 0.79**2 / 0.71, 0.961**2 / 0.88),
        ratios=((2.0,),) * 5,
    ),
}


# Percent of the image: the first level's size, then the range of the others (caffe's VOC and COCO scripts).
_AUTO = {"auto": ((10, 20), (7, 15)), "auto_coco": ((7, 15), (4, 10))}
_LARGEST = 90
_MANY_LEVELS = 7


def default_spec(num_levels, chain_name="auto"):
    """Returns the spec that fits a number of levels, by the rule of caffe's scripts.

    "auto" (VOC's objects): 10 % of the image for the first level, the others spread evenly over 20..90 %; with 7
    or more levels 7 %, and 15..90 %. "auto_coco" (smaller objects): 7 % and 15..90 %; 4 % and 10..90 %.
    """
    first, low = _AUTO[chain_name][num_levels >= _MANY_LEVELS]
    step = math.floor((_LARGEST - low) / max(num_levels - 2, 1))
    sizes = [first] + [low + step * level for level in range(num_levels)]
    return chain(_pixels(100, *sizes), _standard_ratios(num_levels))


def resolve_spec(num_levels, preset="auto", sizes=(), ratios=(), steps=(), offset=0.5, clip="preset"):
    """Returns the spec of a recipe: a preset with parts replaced.

    Args:
      num_levels: number of feature maps.
      preset: "auto" or "auto_coco" (by number of levels), or a key of PRESETS.
      sizes: () or num_levels + 1 fractions of the shorter image side.
      ratios: () or one tuple a level.
      steps: () or pixels, one a level.
      offset: place of the centre inside its cell.
      clip: "preset" or one of CLIP_MODES.

    Raises:
      ConfigError: unknown preset, or parts for another number of levels.
    """
    known = (*_AUTO, *PRESETS)
    if preset not in known:
        raise ConfigError(f"anchors.preset: {preset!r} is none of {', '.join(known)}{suggest(preset, known)}")
    spec = default_spec(num_levels, preset) if preset in _AUTO else PRESETS[preset]
    changes = {"offset": offset}
    if sizes:
        changes.update(sizes=tuple(sizes[:-1]), next_sizes=tuple(sizes[1:]))
    if ratios:
        changes["ratios"] = tuple(map(tuple, ratios))
    if steps:
        changes["steps"] = tuple(steps)
    if clip != "preset":
        changes["clip"] = clip
    spec = replace(spec, **changes)
    if len(spec.sizes) != num_levels:
        raise ConfigError(
            f"anchors: {len(spec.sizes)} levels given, the model has {num_levels} (anchors.preset=auto fits any)"
        )
    return spec


def steps_fit(spec, map_sizes, image_size):
    """Tells whether every pixel step times the cells covers its image side to within one step."""
    return all(
        abs(step * cells - side) <= step
        for step, size in zip(spec.steps, map_sizes)
        for cells, side in zip(size, image_size, strict=True)
    )


def num_anchors_per_cell(spec):
    """Returns the number of shapes of each level, a tuple of ints."""
    counts = [2 + 2 * len(ratios) for ratios in spec.ratios]
    return (3, *counts[1:]) if spec.order == "tf_od" else tuple(counts)


def make_anchors(spec, map_sizes, image_size):
    """Builds all anchors of a model.

    Args:
      spec: AnchorSpec with as many levels as `map_sizes`.
      map_sizes: (rows, columns) of each feature map, fine to coarse.
      image_size: (height, width) of the network input, pixels.

    Returns:
      float32 [A, 4], yxyx normalised; beyond [0, 1] unless clipped.
    """
    grid_steps = spec.steps and (spec.fixed_steps or steps_fit(spec, map_sizes, image_size))
    levels = []
    for level, map_size in enumerate(map_sizes):
        step = spec.steps[level] if grid_steps else None
        levels.append(_level_anchors(spec, level, map_size, image_size, step))
    boxes = np.concatenate(levels)
    if spec.clip == "centre_size":
        boxes = np.clip(boxes, 0, 1)
    elif spec.clip == "size":
        boxes[:, 2:] = np.minimum(boxes[:, 2:], 1)
    corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)
    return (np.clip(corners, 0, 1) if spec.clip == "corners" else corners).astype(np.float32)


def _level_anchors(spec, level, map_size, image_size, step):
    """Centre-size anchors of one map, float64 [rows * columns * shapes, 4]."""
    y, x = (
        (np.arange(cells) + spec.offset) * (side / cells if step is None else step) / side
        for cells, side in zip(map_size, image_size, strict=True)
    )
    shapes = _shapes(spec, level)
    shapes = shapes * (min(image_size) / np.asarray(image_size, np.float64))
    grid = np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1)[:, :, None]
    grid = np.broadcast_to(grid, (*map_size, len(shapes), 2))
    return np.concatenate([grid, np.broadcast_to(shapes, grid.shape)], axis=-1).reshape(-1, 4)


def _shapes(spec, level):
    """(height, width) of a cell's shapes, float64 [S, 2], as fractions of the shorter image side."""
    size, mean = spec.sizes[level], math.sqrt(spec.sizes[level] * spec.next_sizes[level])
    if spec.order == "tf_od":
        if level == 0:
            shapes = [(size / 2, size / 2), _shape(size, 2.0), _shape(size, 0.5)]
        else:
            # Its configs spell 1/3 as 0.3333.
            both = [_shape(size, side) for ratio in spec.ratios[level] for side in (ratio, round(1 / ratio, 4))]
            shapes = [(size, size), *both, (mean, mean)]
    else:
        both = [_shape(size, side) for ratio in spec.ratios[level] for side in (ratio, 1 / ratio)]
        shapes = [(size, size), (mean, mean), *both]
    return np.asarray(shapes, np.float64)


def _shape(size, ratio):
    """(height, width) of the area size x size and a ratio width / height."""
    return size / math.sqrt(ratio), size * math.sqrt(ratio)
