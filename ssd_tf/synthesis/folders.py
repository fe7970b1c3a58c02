"""What a user's folders of cut-outs and photographs hold: files by class, in an order that never changes."""

import os
import re
from pathlib import Path

from ssd_tf.errors import ConfigError, DataError, is_text, shown, suggest

SUFFIXES = (".png", ".webp", ".gif", ".jpg", ".jpeg", ".bmp")
_NUMBERED = re.compile(r"(.+?)[_-]\d+")


def list_images(folder):
    """Lists the images of a folder, by name.

    Args:
      folder: directory; hidden entries do not count.

    Returns:
      (paths of its image files, paths of what else is in it), both sorted.

    Raises:
      DataError: it cannot be read or holds no image.
    """
    found, ignored = _split(_entries(folder))
    if not found:
        raise DataError(f"no images in {shown(folder)} ({' '.join(SUFFIXES)})")
    return found, ignored


def find_classes(folder, classes=None):
    """Finds the cut-outs of each class.

    A class is a sub-folder, or in a folder without sub-folders the files whose names are equal but for "_" or "-"
    and a number at the end: cat_1.png, cat_02.png and cat.png are of the class "cat".

    Args:
      folder: directory of sub-folders, or of images.
      classes: names of the classes wanted, or None for all, sorted.

    Returns:
      ({name: paths sorted by name} in the order of the ids, paths of what else is there).

    Raises:
      ConfigError: a class asked for is not there.
      DataError: it cannot be read, holds no images, or both images and sub-folders.
    """
    entries = _entries(folder)
    folders = [entry for entry in entries if entry.is_dir()]
    if not folders:
        paths, ignored = list_images(folder)
        names = [_class_of(path) for path in paths]
        groups = {name: [] for name in _choose(sorted(set(names)), classes, folder)}
        for name, path in zip(names, paths, strict=True):
            if name in groups:
                groups[name].append(path)
        return groups, ignored
    stray, ignored = _split(entry for entry in entries if entry not in folders)
    if stray:
        raise DataError(f"{shown(folder)} holds sub-folders (classes), but also images: {shown(stray[0].name)}")
    groups = {}
    for name in _choose([entry.name for entry in folders], classes, folder):
        groups[name], more = list_images(Path(folder) / name)
        ignored += more
    return groups, ignored


def _entries(folder):
    try:
        entries = [entry for entry in Path(folder).iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"cannot read: {os.strerror(error.errno).lower()}: {shown(folder)}") from None
    return sorted(entries, key=lambda entry: entry.name)


def _split(entries):
    """Images, and all the rest."""
    found, ignored = [], []
    for entry in entries:
        is_image = entry.suffix.lower() in SUFFIXES and not entry.is_dir()
        (found if is_image else ignored).append(entry)
    return found, ignored


def _class_of(path):
    numbered = _NUMBERED.fullmatch(path.stem)
    return numbered[1] if numbered else path.stem


def _choose(names, classes, folder):
    for name in names if classes is None else classes:
        if name not in names:
            there = ", ".join(map(shown, names))
            raise ConfigError(f"unknown class {name!r}{suggest(name, names)}; {shown(folder)} has: {there}")
        if not is_text(name):
            raise DataError(f"{shown(folder)}: {shown(name)} cannot be the name of a class: it is not UTF-8")
    return names if classes is None else classes
