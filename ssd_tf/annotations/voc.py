"""PASCAL VOC: one XML file an image, lists of ids for the splits, or a plain folder of both.

VOC counts pixels from 1 and names the last pixel inside the box. In continuous coordinates a box therefore
runs from xmin - 1 to xmax: 1 is subtracted from xmin and ymin only. A box is judged before that, as
annotated: xmax = xmin or ymax = ymin is degenerate and dropped, smaller is an error.
"""

import collections
import os
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from xml.parsers import expat

from ssd_tf import fileio
from ssd_tf.annotations.annotation_set import (
    BAD_ANNOTATION,
    AnnotatedImage,
    AnnotatedObject,
    assemble,
    check_box,
    choose_classes,
    count_note,
    degenerate_line,
    is_degenerate,
    read_size,
)
from ssd_tf.errors import ConfigError, DataError, shown, suggest
from ssd_tf.structures import Problem

_XML_LIMIT = 16 << 20
_PIECE = 1 << 20
_MAX_DEPTH = 64
_MAX_ELEMENTS = 500_000
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")
# All of them write ASCII as ASCII; the codecs Python knows beyond these are not meant for files.
_ENCODINGS = re.compile(
    r"utf-?8|(us-)?ascii|iso-8859-\d+|latin-?1|(windows-|cp)125\d|gb2312|gbk|gb18030|big5|shift_jis|euc-(jp|kr)|koi8-r",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class _Layout:
    """Where things lie: {stem: paths} of XML files and images, and {split: path} of the lists."""

    annotation_folder: Path
    image_folder: Path
    annotations: dict
    images: dict
    lists: dict


@dataclass(frozen=True)
class _Document:
    """One XML file: <filename> ("" if missing), (height, width) or None, and the objects."""

    filename: str
    size: tuple[int, int] | None
    objects: tuple[AnnotatedObject, ...]


def read(root, split="", classes=(), label_map=None):
    """Reads a folder in VOC layout, or a flat folder of images and XML files.

    Class ids follow from the names in all XML files of the folder, sorted, so that splits read apart agree.

    Args:
      root: folder with Annotations/, JPEGImages/ and ImageSets/Main/; without ImageSets all is read.
      split: name of a list in ImageSets/Main, such as "trainval".
      classes: names of the classes to use, in the order of their ids; () for all.
      label_map: LabelMap that overrides the ids, or None.

    Returns:
      AnnotationSet; boxes yxyx in pixels, source ids are the XML files' stems.

    Raises:
      ConfigError: no such split or class.
      DataError: nothing to read, or class names that differ only by case or spaces.
    """
    layout = _find_layout(Path(root))
    ids, notes = _choose_ids(layout, split, root)
    wanted = set(ids)
    documents, faults = _read_documents(layout, wanted | (set(layout.annotations) if label_map is None else set()))
    choice = choose_classes(_files_by_class(layout, documents), shown(root), tuple(classes), label_map)
    problems = [
        Problem("missing annotation", shown(stem), f"listed in {split}.txt, but there is no {shown(stem)}.xml")
        for stem in ids
        if stem not in layout.annotations
    ]
    problems += [
        Problem(BAD_ANNOTATION, shown(layout.annotations[stem][0].name), message)
        for stem, message in faults.items()
        if stem in wanted
    ]
    outside = [shown(layout.annotations[stem][0].name) for stem in faults if stem not in wanted]
    notes += count_note("XML file{s} outside the split cannot be read", outside)
    images, found_problems, found_notes = _pair_images(layout, ids, documents)
    return assemble(images, choice, shown(root), problems + found_problems, notes + found_notes)


def _find_layout(root):
    if not root.is_dir():
        raise DataError(f"no such directory: {shown(root)}")
    annotation_folder = _first_folder(root, "Annotations", "annotations")
    image_folder = _first_folder(root, "JPEGImages", "images", "Images")
    annotations = _files_by_stem(annotation_folder, (".xml",))
    lists = _files_by_stem(root / "ImageSets" / "Main", (".txt",))
    if not annotations:
        raise DataError(f"no usable example (0 of 0): no XML file in {shown(annotation_folder)}")
    return _Layout(
        annotation_folder,
        image_folder,
        annotations,
        _files_by_stem(image_folder, _IMAGE_SUFFIXES),
        {stem: paths[0] for stem, paths in lists.items()},
    )


def _first_folder(root, *names):
    return next((root / name for name in names if (root / name).is_dir()), root)


def _files_by_stem(folder, suffixes):
    """Returns {stem: [path, ...]}, sorted, of the visible regular files in `folder`, {} if there is none."""
    found = {}
    if folder.is_dir():
        try:
            names = sorted(entry.name for entry in os.scandir(folder) if entry.is_file())
        except OSError as error:
            raise DataError(f"cannot read: {os.strerror(error.errno).lower()}: {shown(folder)}") from None
        for name in names:
            path = folder / name
            if path.suffix.lower() in suffixes and not name.startswith("."):
                found.setdefault(path.stem, []).append(path)
    return found


def _choose_ids(layout, split, root):
    """Returns the ids to read, in order, and notes."""
    if not layout.lists:
        if split:
            raise ConfigError(f"split {split!r} given, but there are no lists in ImageSets/Main: {shown(root)}")
        return sorted(layout.annotations), ()
    if split not in layout.lists:
        what = f"unknown split {split!r}{suggest(split, layout.lists)}" if split else "a split is needed"
        raise ConfigError(f"{what}; there are: {_listed_splits(layout.lists)}: {shown(root)}")
    lines = fileio.read_text(layout.lists[split]).splitlines()
    ids = [_listed_id(line.strip(), layout.annotations) for line in lines if line.strip()]
    counts = collections.Counter(ids)
    twice = [shown(stem) for stem, count in counts.items() if count > 1]
    return list(counts), count_note(f"repeated id{{s}} in {split}.txt", twice)


def _listed_splits(lists):
    # VOC has a list for every class and split, such as dog_train; they would bury the four that matter.
    main = [name for name in sorted(lists) if name.rpartition("_")[2] not in set(lists) - {name}]
    hidden = len(lists) - len(main)
    return ", ".join(main) + (f" (and {hidden} of single classes)" if hidden else "")


def _listed_id(line, known):
    flagged = re.fullmatch(r"(.*\S)\s+(?:1|0|-1)", line)
    return flagged[1] if flagged and line not in known else line


def _read_documents(layout, stems):
    """Returns {stem: _Document} and {stem: message of what is wrong}, both in sorted order."""
    documents, faults = {}, {}
    for stem in sorted(stems & set(layout.annotations)):
        paths = layout.annotations[stem]
        try:
            if len(paths) > 1:
                raise DataError(f"two annotation files for one image: {', '.join(shown(p.name) for p in paths)}")
            documents[stem] = _read_document(paths[0])
        except DataError as error:
            faults[stem] = str(error)
    return documents, faults


def _files_by_class(layout, documents):
    found = {}
    for stem, document in documents.items():
        for name in {item.name for item in document.objects}:
            found.setdefault(name, []).append(shown(layout.annotations[stem][0].name))
    return dict(sorted(found.items()))


def _pair_images(layout, ids, documents):
    """Returns AnnotatedImages, Problems and notes for the readable documents among `ids`."""
    pairs, problems, alone = [], [], []
    for stem in ids:
        if stem not in documents:
            continue
        place = shown(layout.annotations[stem][0].name)
        try:
            image = _find_image(layout, stem, documents[stem].filename)
        except DataError as error:
            problems.append(Problem(BAD_ANNOTATION, place, f"{error}: {place}"))
            continue
        if image is not None:
            pairs.append(AnnotatedImage(place, stem, str(image), documents[stem].size, documents[stem].objects))
        elif layout.lists:
            problems.append(
                Problem("missing image", place, f"no image for {place} in {shown(layout.image_folder)}")
            )
        else:
            alone.append(place)
    if layout.lists:
        return pairs, problems, ()
    return pairs, problems, _unpaired_notes(layout, pairs, alone)


def _unpaired_notes(layout, pairs, alone):
    used = {Path(pair.image) for pair in pairs}
    known = set(layout.annotations)
    bare = [
        shown(path.name)
        for stem, paths in layout.images.items()
        for path in paths
        if path not in used and stem not in known
    ]
    return count_note("image{s} without an annotation file", bare) + count_note(
        "annotation file{s} without an image", alone
    )


def _find_image(layout, stem, filename):
    """Returns the path of the image that belongs to an XML file, or None.

    The XML file's own stem decides; <filename> only where no image or several have it.

    Raises:
      DataError: <filename> is needed and leaves the folder, or several images fit.
    """
    name = PurePosixPath(filename.replace("\\", "/"))
    candidates = layout.images.get(stem, [])
    if not candidates and filename:
        fileio.safe_join(layout.image_folder, str(name))
        candidates = layout.images.get(name.name) or layout.images.get(name.stem, [])
    if len(candidates) > 1:
        candidates = [path for path in candidates if path.name == name.name] or candidates
    if len(candidates) > 1:
        raise DataError(f"several images fit ({', '.join(shown(path.name) for path in candidates)})")
    return candidates[0] if candidates else None


class _LimitedBuilder(ElementTree.TreeBuilder):
    """Builds the tree of an annotation, but not one that only serves to fill the memory."""

    def __init__(self, place):
        super().__init__()
        self._place = place
        self._depth = 0
        self._count = 0

    def start(self, tag, attributes):
        self._depth += 1
        self._count += 1
        if self._depth > _MAX_DEPTH:
            raise DataError(f"refused: XML nested too deeply: {self._place}")
        if self._count > _MAX_ELEMENTS:
            raise DataError(f"refused: XML with more than {_MAX_ELEMENTS:,} elements: {self._place}")
        return super().start(tag, attributes)

    def end(self, tag):
        self._depth -= 1
        return super().end(tag)


def _read_document(path):
    """Reads one XML file; a box that cannot be used is a fault of its object, not of the file."""
    place = shown(path.name)
    if os.path.isfile(path) and os.path.getsize(path) > _XML_LIMIT:
        raise DataError(f"refused: annotation larger than 16 MiB: {place}")
    text = _decode(fileio.read_bytes(path, _XML_LIMIT), place)
    # No entity is ever declared, so none can be expanded or opened.
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise DataError(f"refused: XML declares entities: {place}")
    root = _parse(text, place)
    if root.tag != "annotation":
        raise DataError(f"root element is {root.tag[:40]!r}, expected 'annotation': {place}")
    size = root.find("size")
    return _Document(
        filename=(root.findtext("filename") or "").strip(),
        size=None if size is None else read_size(size.findtext("height"), size.findtext("width")),
        objects=tuple(_read_object(item, index, place) for index, item in enumerate(root.findall("object"), 1)),
    )


def _decode(data, place):
    """Turns an XML file's bytes into the very text that is checked and parsed."""
    declared = re.match(rb"""(?:\xef\xbb\xbf)?<\?xml[^>]*?encoding\s*=\s*["']([\w.-]+)""", data)
    encoding = declared[1].decode("ascii", "replace") if declared else "utf-8"
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encoding = "utf-16"
    elif data[:2] in (b"<\0", b"\0<"):
        encoding = "utf-16-le" if data[:1] == b"<" else "utf-16-be"
    elif data[:3] == b"\xef\xbb\xbf" or encoding.lower() == "utf-16":  # ASCII bytes that claim to be UTF-16
        encoding = "utf-8-sig"
    elif not _ENCODINGS.fullmatch(encoding):
        raise DataError(f"encoding {encoding[:40]!r} is not supported: {place}")
    try:
        return data.decode(encoding)
    except (UnicodeDecodeError, LookupError):
        raise DataError(f"text is not {encoding.removesuffix('-sig').upper()}: {place}") from None


def _parse(text, place):
    parser = ElementTree.XMLParser(target=_LimitedBuilder(place))
    try:
        for start in range(0, len(text), _PIECE):  # a refusal stops the parser at the end of a piece only
            parser.feed(text[start : start + _PIECE])
        return parser.close()
    except ElementTree.ParseError as error:
        line, column = error.position
        reason = expat.ErrorString(error.code).removeprefix("not well-formed ").strip("()")
        raise DataError(f"{place}:{line}:{column + 1}: not well-formed: {reason}") from None
    except UnicodeEncodeError:
        raise DataError(f"text holds half a surrogate pair: {place}") from None


def _read_object(element, index, place):
    # Elements without children are false, so every test is against None.
    where = f"object {index}"
    name = element.findtext("name") or ""
    if "\n" in name:  # indented by a pretty-printer
        name = name.strip()
    if not name.strip():
        raise DataError(f"{where}: no <name>: {place}")
    flags = {
        flag: (element.findtext(flag) or "").strip().lower() in ("1", "true")
        for flag in ("difficult", "truncated")
    }
    try:
        box, degenerate = _read_box(element.find("bndbox"), where, name)
    except DataError as error:
        return AnnotatedObject(name, fault=str(error), **flags)
    return AnnotatedObject(name, box, degenerate=degenerate, **flags)


def _read_box(element, where, name):
    """Returns a yxyx box in continuous pixels, and the line for a degenerate one or ""."""
    if element is None:
        raise DataError(f"{where}: no <bndbox>")
    corners = check_box(*(element.findtext(edge) for edge in ("xmin", "ymin", "xmax", "ymax")), where)
    x0, y0, x1, y1 = corners
    return (y0 - 1, x0 - 1, y1, x1), degenerate_line(where, name, corners) if is_degenerate(corners) else ""
