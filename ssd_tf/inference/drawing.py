"""Boxes on pictures, pages of pictures, curves over steps: pixels with nothing but OpenCV."""

import colorsys
import math
from pathlib import Path

import cv2
import numpy as np

from ssd_tf.boxes import coder, ops
from ssd_tf.errors import ConfigError, shown

_FONT = cv2.FONT_HERSHEY_SIMPLEX
# Steps of the golden ratio around the colour circle keep neighbouring ids apart.
_HUE_STEP = 0.618034
_LEAST_TEXT_SCALE = 0.35  # smaller letters cannot be read
_PADDING = 2  # beside the letters of a caption
_SAME_BOX = 1e-4  # of the image's side; two anchors decode the box they share to within rounding

_PAPER, _INK, _GRID, _EMPTY = (255, 255, 255), (40, 40, 40), (222, 222, 222), (200, 200, 200)
_CELL = 320  # sides of the cells of a page, pixels
_GAP, _CAPTION, _HEADER = 8, 24, 36
_PAGE_TEXT = 0.5
_LEAST_SHOWN = 8  # detections a picture, where there are so many

_PANEL_SIZE = (960, 300)  # width, height
_MARGINS = (90, 44, 44, 56)  # left, top, right, bottom of a panel's axes
_LINE_COLORS = ((214, 60, 40), (35, 105, 190), (30, 140, 70))
_MOST_DOTS = 40
# Title and keys of the rows of log.jsonl.
_PANELS = (
    ("loss", ("loss", "class_loss", "box_loss")),
    ("learning rate", ("learning_rate",)),
    ("validation mAP", ("mAP",)),
)


def class_color(class_id):
    """Returns the (R, G, B) colour, 0..255, that a class is always drawn in."""
    red, green, blue = colorsys.hsv_to_rgb(class_id * _HUE_STEP % 1, 0.85, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_boxes(image, boxes, labels, classes):
    """Draws boxes with captions; lines and letters follow the picture's size.

    Args:
      image: uint8 [H, W, 3], RGB; not changed.
      boxes: float [N, 4], xyxy in pixels; drawn worst first so that the best stay on top.
      labels: N captions; "" for none. A caption goes above its box, or where that place is taken inside or below.
      classes: int [N], chooses the colours.

    Returns:
      uint8 [H, W, 3], RGB.
    """
    canvas = np.ascontiguousarray(image).copy()
    side = min(canvas.shape[:2])
    scale = max(_LEAST_TEXT_SCALE, 0.25 + side / 1280)  # large pictures are looked at from further off
    corners = np.round(np.asarray(boxes, np.float64)).astype(int).reshape(-1, 4).tolist()
    captions = _place_captions(corners, labels, scale, canvas.shape)
    colors = [class_color(int(class_id)) for class_id in classes]
    for box, color in reversed(list(zip(corners, colors, strict=True))):
        cv2.rectangle(canvas, box[:2], box[2:], color, max(1, round(side / 200)))
    for caption, color in reversed(list(zip(captions, colors))):
        if caption:
            _draw_caption(canvas, *caption, scale, color)
    return canvas


def _place_captions(boxes, labels, scale, shape):
    """Returns for each label (text, (x0, y0, x1, y1)), or None for an empty one; the best choose first."""
    placed, taken = [], np.zeros((0, 4))
    for box, label in zip(boxes, labels, strict=True):
        if not label:
            placed.append(None)
            continue
        width, height = _text_size(label, scale)
        spots = _caption_spots(box, (width + 2 * _PADDING, height), shape)
        free = (spot for spot in spots if not ops.coverage(np.array([spot]), taken).any())
        placed.append((label, next(free, spots[0])))
        taken = np.concatenate([taken, [placed[-1][1]]])
    return placed


def _caption_spots(box, size, shape):
    """Places for a caption of (width, height), best first, all inside the picture as far as it is large enough."""
    (x0, y0, x1, y1), (width, height) = box, size
    corners = [(x0, y0 - height), (x1 - width, y0 - height), (x0, y0), (x0, y1), (x0, y1 - height)]
    corners = [(max(min(x, shape[1] - width), 0), max(min(y, shape[0] - height), 0)) for x, y in corners]
    return [(x, y, x + width, y + height) for x, y in corners]


def _draw_caption(canvas, text, place, scale, color):
    cv2.rectangle(canvas, place[:2], place[2:], color, cv2.FILLED)
    ink = (0, 0, 0) if np.dot(color, (0.299, 0.587, 0.114)) > 140 else (255, 255, 255)
    _write(canvas, text, (place[0] + _PADDING, place[1]), scale, ink)


def _thickness(scale):
    return max(1, round(scale * 1.4))


def _text_size(text, scale):
    """Returns (width, height) in pixels, descenders included."""
    (width, height), below = cv2.getTextSize(text, _FONT, scale, _thickness(scale))
    return width, height + below


def _write(canvas, text, corner, scale=_PAGE_TEXT, color=_INK):
    """Writes text whose top left corner is (x, y)."""
    thickness = _thickness(scale)
    (_, height), below = cv2.getTextSize(text, _FONT, scale, thickness)
    base = (round(corner[0]), round(corner[1]) + height + below - below // 2)
    cv2.putText(canvas, text, base, _FONT, scale, color, thickness, cv2.LINE_AA)


def _shortened(text, width, scale=_PAGE_TEXT):
    """Returns the text, or as much of its start as fits `width` with an ellipsis."""
    if _text_size(text, scale)[0] <= width:
        return text
    while text and _text_size(text + "...", scale)[0] > width:
        text = text[:-1]
    return text + "..."


def fit(image, height, width, size=None):
    """Resizes a picture so that it just fits, its proportions kept.

    Args:
      image: uint8 [H, W, 3].
      height, width: most pixels.
      size: (height, width) that gives the proportions; by default the image's own.

    Returns:
      (uint8 [h, w, 3], factors float64 (y, x) from pixels of `size` to pixels of the result).
    """
    before = np.asarray(size or image.shape[:2], np.float64)
    after = np.maximum(np.round(before * min(height / before[0], width / before[1])), 1).astype(int)
    smaller = after.prod() < image.shape[0] * image.shape[1]
    how = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    resized = cv2.resize(np.ascontiguousarray(image), tuple(after[::-1].tolist()), interpolation=how)
    return resized, after / before


def picture_grid(pictures, captions, columns, title, cell=(_CELL, _CELL)):
    """Lays pictures of any sizes into equal cells, row by row, under a title.

    Args:
      pictures: N uint8 [h, w, 3], RGB.
      captions: N texts, written above the pictures; shortened where they are too long.
      columns: cells in a row.
      title: text at the head of the page.
      cell: (height, width) of a cell in pixels.

    Returns:
      uint8 [H, W, 3], RGB.
    """
    step_y, step_x = cell[0] + _CAPTION + _GAP, cell[1] + _GAP
    rows = math.ceil(len(pictures) / columns)
    page = np.full((_HEADER + rows * step_y, _GAP + columns * step_x, 3), _PAPER, np.uint8)
    _write(page, _shortened(title, page.shape[1] - 2 * _GAP, 0.55), (_GAP, 9), 0.55)
    for index, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        top = _HEADER + index // columns * step_y
        left = _GAP + index % columns * step_x
        _write(page, _shortened(caption, cell[1]), (left, top + 1))
        inner = page[top + _CAPTION : top + _CAPTION + cell[0], left : left + cell[1]]
        inner[:] = _EMPTY
        fitted, _ = fit(picture, *cell)
        y, x = (cell[0] - fitted.shape[0]) // 2, (cell[1] - fitted.shape[1]) // 2
        inner[y : y + fitted.shape[0], x : x + fitted.shape[1]] = fitted
    return page


def draw_batch(images, targets, anchors, label_map, most=16):
    """Draws what the network is trained on: the pictures of a batch and the boxes that its targets hold.

    The boxes are decoded from the matched anchors, so an object that no anchor learns is not drawn.

    Args:
      images: uint8 [B, H, W, 3].
      targets: {"class_logits": int32 [B, A], "box_deltas": float32 [B, A, 5]}, see data.targets.
      anchors: float32 [A, 4], yxyx normalised.
      label_map: LabelMap.
      most: pictures to draw.

    Returns:
      uint8 [H, W, 3], RGB.
    """
    pictures, captions = [], []
    for image, labels, deltas in zip(images[:most], targets["class_logits"], targets["box_deltas"]):
        boxes, classes = decode_targets(labels, deltas, anchors)
        picture, factors = fit(image, _CELL, _CELL)
        to_pixels = np.tile(factors * image.shape[:2], 2)
        names = [label_map.name(class_id) for class_id in classes]
        pictures.append(draw_boxes(picture, ops.yxyx_to_xyxy(boxes * to_pixels), names, classes))
        captions.append(f"{len(boxes)} object{'' if len(boxes) == 1 else 's'}")
    title = f"first training batch, as the network saw it: {len(pictures)} of {len(images)} pictures"
    return picture_grid(pictures, captions, min(4, len(pictures)), title)


def decode_targets(labels, deltas, anchors):
    """Returns the objects that the targets of one image hold, each once.

    Args:
      labels: int32 [A], as data.targets makes them.
      deltas: float32 [A, 5].
      anchors: float32 [A, 4], yxyx normalised.

    Returns:
      (boxes float32 [N, 4] yxyx normalised, classes int32 [N]).
    """
    positive = deltas[:, 4] > 0
    boxes, classes = coder.decode(deltas[positive, :4], anchors[positive]), labels[positive]
    same = (np.abs(boxes[:, None] - boxes) < _SAME_BOX).all(axis=2) & (classes[:, None] == classes)
    firsts = np.flatnonzero(same.argmax(axis=1) == np.arange(len(boxes))) if len(boxes) else []
    return boxes[firsts], classes[firsts]


def draw_validation(images, truths, detections, label_map, score_threshold, step):
    """Draws annotated and detected objects side by side.

    Args:
      images: N uint8 [H, W, 3], of the network's size or any other.
      truths: N Examples, boxes in pixels, `size` set.
      detections: N Detections, boxes in pixels of that size.
      label_map: LabelMap.
      score_threshold: draws detections from this score on; of many the best alone, twice as many as there are
        objects.
      step: training step of the weights, for the title.

    Returns:
      uint8 [H, W, 3], RGB.
    """
    pictures, captions = [], []
    for image, truth, found in zip(images, truths, detections):
        picture, factors = fit(image, _CELL, _CELL, truth.size)
        found, factors = found.above(score_threshold), np.tile(factors[::-1], 2)
        ignored = truth.difficult | truth.crowd
        marks = [name + " (ignored)" * int(flag) for name, flag in zip(truth.names, ignored)]
        ids = [label_map.id(name) for name in truth.names]
        pictures.append(draw_boxes(picture, ops.yxyx_to_xyxy(truth.boxes) * factors, marks, ids))
        most = max(_LEAST_SHOWN, 2 * len(ids))
        labels = [f"{label_map.name(c)} {s:.2f}" for c, s in zip(found.classes[:most], found.scores)]
        pictures.append(draw_boxes(picture, found.boxes[:most] * factors, labels, found.classes[:most]))
        drawn = f", the best {most} drawn" if len(found) > most else ""
        captions += [f"image {shown(truth.source_id)}: truth", f"{len(found)} predicted{drawn}"]
    title = f"validation at step {step:,}: truth beside predictions with a score of {score_threshold:.3g} or more"
    return picture_grid(pictures, captions, min(4, len(pictures)), title)


def draw_curves(rows, title):
    """Draws losses, learning rate and validation mAP over the steps.

    Args:
      rows: dicts with "step" and some of the columns of log.jsonl; None for a number there is not.
      title: text at the head of the page.

    Returns:
      uint8 [H, W, 3], RGB.
    """
    panels = [(name, _series(rows, keys)) for name, keys in _PANELS]
    panels = [(name, series) for name, series in panels if series]
    width, height = _PANEL_SIZE
    page = np.full((_HEADER + height * len(panels), width, 3), _PAPER, np.uint8)
    _write(page, _shortened(title, width - 2 * _GAP, 0.55), (_GAP, 9), 0.55)
    last_step = max((row["step"] for row in rows), default=0)
    for index, (name, series) in enumerate(panels):
        top = _HEADER + index * height
        _draw_panel(page[top : top + height], name, series, last_step)
    return page


def _series(rows, keys):
    """Returns {key: float64 [N, 2] of (step, value)} of the keys that have any value."""
    points = {key: [(row["step"], row[key]) for row in rows if row.get(key) is not None] for key in keys}
    return {key: np.array(values, np.float64) for key, values in points.items() if values}


def _draw_panel(panel, title, series, last_step):
    """Draws axes from 0, lines and legend into a view of the page."""
    ticks = axis_ticks(max(points[:, 1].max() for points in series.values()))
    place = _draw_axes(panel, ticks, max(last_step, 1))
    _write(panel, title, (_MARGINS[0], 14), 0.55)
    right = _PANEL_SIZE[0] - _MARGINS[2]
    for (name, points), color in reversed(list(zip(series.items(), _LINE_COLORS))):
        pixels = place(points[:, 0], points[:, 1])
        cv2.polylines(panel, [pixels], False, color, 2, cv2.LINE_AA)
        for pixel in pixels if len(pixels) <= _MOST_DOTS else ():
            cv2.circle(panel, pixel.tolist(), 3, color, cv2.FILLED, cv2.LINE_AA)
        text = f"{name} {points[-1, 1]:.4g}"
        right -= _text_size(text, _PAGE_TEXT)[0]
        _write(panel, text, (right, 16))
        cv2.line(panel, (right - 30, 23), (right - 8, 23), color, 3, cv2.LINE_AA)
        right -= 48


def _draw_axes(panel, ticks, last_step):
    """Draws grid and numbers; returns the function (steps, values) -> int32 pixels [N, 2]."""
    (width, height), (left, top, right, bottom) = _PANEL_SIZE, _MARGINS
    origin = np.array([left, height - bottom])
    spans = np.array([(width - left - right) / last_step, (top + bottom - height) / ticks[-1]])

    def place(steps, values):
        return np.round(origin + np.stack([steps, values], axis=-1) * spans).astype(np.int32)

    for tick in ticks:
        x, y = place(0, tick).tolist()
        cv2.line(panel, (x, y), (width - right, y), _GRID)
        _write_centred(panel, f"{tick:,.10g}", x - 8, y, 1.0)
    for tick in (tick for tick in axis_ticks(last_step, 8) if tick <= last_step and tick % 1 == 0):
        x, y = place(tick, 0).tolist()
        cv2.line(panel, (x, y), (x, y + 5), _INK)
        _write_centred(panel, f"{tick:,.10g}", x, y + 16, 0.5)
    _write_centred(panel, "step", (left + width - right) // 2, height - 16, 0.5)
    cv2.line(panel, place(0, 0).tolist(), place(0, ticks[-1]).tolist(), _INK)
    cv2.line(panel, place(0, 0).tolist(), place(last_step, 0).tolist(), _INK)
    return place


def _write_centred(panel, text, x, y, share):
    """Writes text around the height y with `share` of its width left of x."""
    width, height = _text_size(text, _PAGE_TEXT)
    _write(panel, text, (x - share * width, y - height / 2))


def axis_ticks(highest, most=5):
    """Returns round numbers from 0 to at least `highest`.

    Args:
      highest: the largest value to show, >= 0; where it is 0 the axis ends at 1.
      most: most steps between the numbers.

    Returns:
      list of floats: multiples of 1, 2 or 5 times a power of ten.
    """
    highest = highest if highest > 0 else 1.0
    rough = highest / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power * most >= highest * (1 - 1e-9))
    return [index * step for index in range(math.ceil(highest / step - 1e-9) + 1)]


def check_format(path):
    """Raises ConfigError unless the suffix of `path` names a format that pictures can be written in."""
    if not Path(path).suffix or not cv2.haveImageWriter(str(path)):
        suffix = Path(path).suffix or "picture without suffix"
        raise ConfigError(f"cannot write a {suffix}: use .jpg or .png: {shown(path)}")


def encode(image, path):
    """Encodes an RGB image in the format that the path's suffix names.

    Returns:
      bytes.

    Raises:
      ConfigError: there is no such format.
    """
    check_format(path)
    _, data = cv2.imencode(Path(path).suffix.lower(), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    return data.tobytes()
