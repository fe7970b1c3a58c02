"""What is odd about an image file and keeps it from nothing: told to the user, and counted."""

import os

from ssd_tf.errors import shown

_STARTS = {b"\xff\xd8": "JPEG", b"\x89PNG": "PNG", b"GIF8": "GIF", b"BM": "BMP", b"RIFF": "WebP"}
_SUFFIXES = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".gif": "GIF", ".bmp": "BMP", ".webp": "WebP"}
_EXTREME = 20  # longer than that, an image resized to a square shows nothing of its content


def describe_oddities(data, height, width, path):
    """Describes an image file that is used all the same.

    Args:
      data: the file's bytes, an image of a format that is supported.
      height, width: pixels of the upright image.
      path: the file.

    Returns:
      tuple of lines: a name that belongs to another format, an extreme aspect.
    """
    lines = []
    suffix = os.path.splitext(path)[1]
    expected = _SUFFIXES.get(suffix.lower())
    kind = next((kind for start, kind in _STARTS.items() if data.startswith(start)), None)
    if expected and kind and kind != expected:
        lines.append(f"{kind} named {suffix}: {shown(path)}")
    if max(height, width) > _EXTREME * min(height, width):
        lines.append(f"extreme aspect ({width}x{height}): {shown(path)}")
    return tuple(lines)
