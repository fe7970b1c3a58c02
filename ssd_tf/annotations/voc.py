"""PASCAL VOC: one XML file an image, lists of ids for the splits, or a plain folder of both.

VOC counts pixels from 1 and names the last pixel inside the box. In continuous coordinates a box therefore
runs from xmin - 1 to xmax: 1 is subtracted from xmin and ymin only. A box is judged before that, as
annotated: xmax = xmin or ymax = ymin is degenerate and dropped, smaller is an error.
"""

import collections
import contextlib
import os
import re
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from xml.parsers import expat

from ssd_tf import fileio
from ssd_tf.annotations.annotation_set import (
    BAD_ANNOTATION,
    DEFAULT_RULES,
    AnnotatedObject,
    assemble,
    check_box,
    choose_classes,
    count_note,
    degenerate_line,
    is_degenerate,
    pack_image,
    path_prefix,
    read_size,
    refuse_unpaired,
    swapped_line,
)
from ssd_tf.errors import ConfigError, DataError, shown, suggest
from ssd_tf.structures import Problem

_XML_LIMIT = 16 << 20
_PIECE = 1 << 20
_MAX_DEPTH = 64
_MAX_ELEMENTS = 500_000
_SUSPICIOUS = 50_000  # tags; below that no tree can fill the memory
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")
# All of them write ASCII as ASCII; the codecs Python knows beyond these are not meant for files.
_ENCODINGS = re.compile(
    r"utf-?8|(us-)?ascii|iso-8859-\d+|latin-?1|(windows-|cp)125\d|gb2312|gbk|gb18030|big5|shift_jis|euc-(jp|kr)|koi8-r",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class _Layout:
    """Where things lie: {stem: file names} of XML files and images, and {split: file names} of the lists."""

    annotation_folder: str
    image_folder: str
    annotations: dict
    images: dict
    lists: dict


def read(root, split="", classes=(), label_map=None, rules=DEFAULT_RULES, require_pairs=False):
    """Reads a folder in VOC layout, or a flat folder of images and XML files.

    Class ids follow from the names in all XML files of the folder, sorted, so that splits read apart agree.

    Args:
      root: folder with Annotations/, JPEGImages/ and ImageSets/Main/; without ImageSets all is read.
      split: name of a list in ImageSets/Main, such as "trainval".
      classes: names of the classes to use, in the order of their ids; () for all.
      label_map: LabelMap that overrides the ids, or None.
      rules: BoxRules; normalised boxes are fractions and never shifted by a pixel.
      require_pairs: refuse a folder with images without XML files, or XML files without images.

    Returns:
      AnnotationSet; boxes yxyx in the rules' format, source ids are the XML files' stems.

    Raises:
      ConfigError: no such split or class.
      DataError: nothing to read, class names that differ only by case or spaces, pairs missing.
    """
    layout = _find_layout(Path(root))
    ids, notes = _choose_ids(layout, split, root)
    wanted = set(ids)
    stems = wanted | (set(layout.annotations) if label_map is None else set())
    images, files_by_class, faults = _read_documents(layout, stems, wanted, rules)
    choice = choose_classes(files_by_class, shown(root), tuple(classes), label_map)
    problems = [
        Problem("missing annotation", shown(stem), f"listed in {split}.txt, but there is no {shown(stem)}.xml")
        for stem in ids
        if stem not in layout.annotations
    ]
    problems += [
        Problem(BAD_ANNOTATION, _place(layout, stem), message)
        for stem, message in faults.items()
        if stem in wanted
    ]
    outside = [_place(layout, stem) for stem in faults if stem not in wanted]
    notes += count_note("XML file{s} outside the split cannot be read", outside)
    pairs, found_problems, unpaired = _pair_images(layout, ids, images)
    if require_pairs:
        refuse_unpaired(unpaired, shown(root))
    return assemble(pairs, choice, shown(root), problems + found_problems, (*notes, *unpaired), rules.bbox_format)


def _find_layout(root):
    if not root.is_dir():
        raise DataError(f"no such directory: {shown(root)}")
    annotation_folder = _first_folder(root, "Annotations", "annotations")
    image_folder = _first_folder(root, "JPEGImages", "images", "Images")
    annotations = _files_by_stem(annotation_folder, (".xml",))
    lists = _files_by_stem(os.path.join(root, "ImageSets", "Main"), (".txt",))
    if not annotations:
        raise DataError(f"no usable example (0 of 0): no XML file in {shown(annotation_folder)}")
    images = _files_by_stem(image_folder, _IMAGE_SUFFIXES)
    return _Layout(annotation_folder, image_folder, annotations, images, lists)


def _first_folder(root, *names):
    return next((str(root / name) for name in names if (root / name).is_dir()), str(root))


def _files_by_stem(folder, suffixes):
    """Returns {stem: (file name, ...)}, sorted, of the visible regular files in `folder`, {} if there is none."""
    if not os.path.isdir(folder):
        return {}
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.name[0] != "." and entry.is_file())
    except OSError as error:
        raise DataError(f"cannot read: {os.strerror(error.errno).lower()}: {shown(folder)}") from None
    found = {}
    for name in names:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in suffixes:
            found[stem] = (*found.get(stem, ()), name)
    return found


def _place(layout, stem):
    """What messages call a stem's XML file."""
    return _printable(layout.annotations[stem][0])


def _printable(name):
    return name if name.isprintable() else shown(name)


def _choose_ids(layout, split, root):
    """Returns the ids to read, in order, and notes."""
    if not layout.lists:
        if split:
            raise ConfigError(f"split {split!r} given, but there are no lists in ImageSets/Main: {shown(root)}")
        return sorted(layout.annotations), ()
    if split not in layout.lists:
        what = f"unknown split {split!r}{suggest(split, layout.lists)}" if split else "a split is needed"
        raise ConfigError(f"{what}; there are: {_listed_splits(layout.lists)}: {shown(root)}")
    lines = fileio.read_text(os.path.join(root, "ImageSets", "Main", layout.lists[split][0])).splitlines()
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


def _read_documents(layout, stems, wanted, rules):
    """Reads XML files, in sorted order.

    Returns:
      {stem: AnnotatedImage, its image still the <filename>} of the readable ones among `wanted`, {class: places
      of the files that have it}, and {stem: message of what is wrong}.
    """
    images, files_by_class, faults = {}, {}, {}
    for stem in sorted(stems & set(layout.annotations)):
        names = layout.annotations[stem]
        try:
            if len(names) > 1:
                raise DataError(f"two annotation files for one image: {', '.join(map(shown, names))}")
            image = _read_document(layout.annotation_folder, names[0], stem, rules)
        except DataError as error:
            faults[stem] = str(error)
            continue
        for name in set(image.names):
            files_by_class.setdefault(name, []).append(image.place)
        if stem in wanted:
            images[stem] = image
    return images, dict(sorted(files_by_class.items())), faults


def _pair_images(layout, ids, images):
    """Returns AnnotatedImages, Problems, and notes on what has no partner."""
    pairs, problems, alone, used = [], [], [], set()
    prefix = path_prefix(layout.image_folder)
    for stem in ids:
        if stem not in images:
            continue
        annotated = images[stem]
        try:
            name = _find_image(layout, stem, annotated.image)
        except DataError as error:
            problems.append(Problem(BAD_ANNOTATION, annotated.place, f"{error}: {annotated.place}"))
            continue
        if name is not None:
            used.add(name)
            annotated.image = prefix + name
            pairs.append(annotated)
        elif layout.lists:
            where = f"{annotated.place} in {shown(layout.image_folder)}"
            problems.append(Problem("missing image", annotated.place, f"no image for {where}"))
        else:
            alone.append(annotated.place)
    return pairs, problems, () if layout.lists else _unpaired_notes(layout, used, alone)


def _unpaired_notes(layout, used, alone):
    bare = [
        shown(name)
        for stem, names in layout.images.items()
        for name in names
        if name not in used and stem not in layout.annotations
    ]
    return count_note("image{s} without an annotation file", bare) + count_note(
        "annotation file{s} without an image", alone
    )


def _find_image(layout, stem, filename):
    """Returns the file name of the image that belongs to an XML file, or None.

    The XML file's own stem decides; <filename> only where no image or several have it.

    Raises:
      DataError: <filename> is needed and leaves the folder, or several images fit.
    """
    candidates = layout.images.get(stem, ())
    if len(candidates) == 1:
        return candidates[0]
    name = PurePosixPath(filename.replace("\\", "/"))
    if not candidates and filename:
        fileio.safe_join(layout.image_folder, str(name))
        candidates = layout.images.get(name.name) or layout.images.get(name.stem, ())
    if len(candidates) > 1:
        candidates = [candidate for candidate in candidates if candidate == name.name] or candidates
    if len(candidates) > 1:
        raise DataError(f"several images fit ({', '.join(map(shown, candidates))})")
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


def _read_document(folder, name, stem, rules):
    """Reads one XML file; a box that cannot be used is a fault of its object, not of the file.

    Returns:
      AnnotatedImage whose `image` is the <filename>, "" if there is none.
    """
    place, path = _printable(name), os.path.join(folder, name)
    if _file_size(path) > _XML_LIMIT:
        raise DataError(f"refused: annotation larger than 16 MiB: {place}")
    text = _decode(fileio.read_bytes(path, _XML_LIMIT), place)
    # No entity is ever declared, so none can be expanded or opened.
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise DataError(f"refused: XML declares entities: {place}")
    root = _parse(text, place)
    if root.tag != "annotation":
        raise DataError(f"root element is {root.tag[:40]!r}, expected 'annotation': {place}")
    size = root.find("size")
    return pack_image(
        place,
        stem,
        (root.findtext("filename") or "").strip(),
        None if size is None else read_size(size.findtext("height"), size.findtext("width")),
        [_read_object(item, f"object {i}", place, rules) for i, item in enumerate(root.findall("object"), 1)],
    )


def _file_size(path):
    with contextlib.suppress(OSError):  # reading it says what is wrong
        return os.stat(path).st_size
    return 0


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
    guard = _LimitedBuilder(place) if text.count("<") > _SUSPICIOUS else None  # the guard takes twice the time
    parser = ElementTree.XMLParser(target=guard)
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


def _read_object(element, where, place, rules):
    # Elements without children are false, so every test is against None.
    name = element.findtext("name") or ""
    if "\n" in name:  # indented by a pretty-printer
        name = name.strip()
    if not name.strip():
        raise DataError(f"{where}: no <name>: {place}")
    name = sys.intern(name)
    try:
        fields = _read_box(element.find("bndbox"), where, name, rules)
    except DataError as error:
        fields = {"fault": str(error)}
    difficult, truncated = element.findtext("difficult"), element.findtext("truncated")
    return AnnotatedObject(name, **fields, difficult=_is_set(difficult), truncated=_is_set(truncated))


def _is_set(text):
    return text is not None and text != "0" and text.strip().lower() in ("1", "true")


def _read_box(element, where, name, rules):
    """Returns the fields box (yxyx), degenerate and swapped of an AnnotatedObject."""
    if element is None:
        raise DataError(f"{where}: no <bndbox>")
    stated = [element.findtext(edge) for edge in ("xmin", "ymin", "xmax", "ymax")]
    corners, swapped = check_box(stated, where, rules.fix_boxes)
    x0, y0, x1, y1 = corners
    shift = 1 if rules.bbox_format == "pixel" else 0
    box = (y0 - shift, x0 - shift, y1, x1)
    if is_degenerate(corners):
        return {"box": box, "degenerate": degenerate_line(where, name, stated)}
    return {"box": box, "swapped": swapped_line(where, name, stated) if swapped else ""}
