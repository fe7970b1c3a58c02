"""Boxes on pictures."""

import colorsys
from pathlib import Path

import cv2
import numpy as np

from ssd_tf.errors import ConfigError, shown

_FONT = cv2.FONT_HERSHEY_SIMPLEX
# Steps of the golden ratio around the colour circle keep neighbouring ids apart.
_HUE_STEP = 0.618034


def class_color(class_id):
    """Returns the (R, G, B) colour, 0..255, that a class is always drawn in."""
    red, green, blue = colorsys.hsv_to_rgb(class_id * _HUE_STEP % 1, 0.85, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_boxes(image, boxes, labels, classes):
    """Draws boxes with captions.

    Args:
      image: uint8 [H, W, 3], RGB; not changed.
      boxes: float [N, 4], xyxy in pixels; drawn worst first so that the best stay on top.
      labels: N captions.
      classes: int [N], chooses the colours.

    Returns:
      uint8 [H, W, 3], RGB.
    """
    canvas = np.ascontiguousarray(image).copy()
    thickness = max(1, round(min(canvas.shape[:2]) / 240))
    for box, label, class_id in reversed(list(zip(np.asarray(boxes), labels, classes, strict=True))):
        x0, y0, x1, y1 = (int(value) for value in np.round(box))
        color = class_color(int(class_id))
        cv2.rectangle(canvas, (x0, y0), (x1, y1), color, thickness)
        _draw_caption(canvas, label, (x0, y0), color, thickness)
    return canvas


def _draw_caption(canvas, text, corner, color, thickness):
    scale = max(0.35, thickness * 0.32)
    (width, height), below = cv2.getTextSize(text, _FONT, scale, 1)
    x = int(np.clip(corner[0], 0, max(canvas.shape[1] - width, 0)))
    y = max(corner[1], height + below)  # above the box, or inside it at the upper border
    cv2.rectangle(canvas, (x, y - height - below), (x + width, y), color, cv2.FILLED)
    ink = (0, 0, 0) if np.dot(color, (0.299, 0.587, 0.114)) > 140 else (255, 255, 255)
    cv2.putText(canvas, text, (x, y - below // 2), _FONT, scale, ink, 1, cv2.LINE_AA)


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
