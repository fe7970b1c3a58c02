"""Names for the class columns of other people's heads: public sets, files of labels, which column is whose."""

import re
from dataclasses import dataclass
from pathlib import Path

from ssd_tf import fileio
from ssd_tf.errors import DataError, is_text, shown
from ssd_tf.pretrained.source import Classes
from ssd_tf.structures import LabelMap, refuse_repeated

_LIMIT = 1 << 20  # bytes that name 20 thousand classes
_LONGEST = 200  # characters of a name
_NO_CLASS = "N/A"  # in torchvision's list of COCO's names
_QUOTED = r""" "(?:[^"\\\n]|\\.)*" | '(?:[^'\\\n]|\\.)*' """
_NUMBER = r"-?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_TOKEN = re.compile(
    rf"\s+ | \#[^\n]* | (?P<token>[A-Za-z_]\w* | {_NUMBER} | [{{}}\[\]:,;] | {_QUOTED})", re.VERBOSE
)
_CLOSING = {"{": "}", "[": "]"}
_IS_MAP = re.compile(r"(?:\s|#[^\n]*\n)*item\s*:?\s*\{")

# The names in COCO's instances_*.json by their ids; those between were never annotated.
COCO = {
    **{1: "person", 2: "bicycle", 3: "car", 4: "motorcycle", 5: "airplane", 6: "bus", 7: "train", 8: "truck"},
    **{9: "boat", 10: "traffic light", 11: "fire hydrant", 13: "stop sign", 14: "parking meter", 15: "bench"},
    **{16: "bird", 17: "cat", 18: "dog", 19: "horse", 20: "sheep", 21: "cow", 22: "elephant", 23: "bear"},
    **{24: "zebra", 25: "giraffe", 27: "backpack", 28: "umbrella", 31: "handbag", 32: "tie", 33: "suitcase"},
    **{34: "frisbee", 35: "skis", 36: "snowboard", 37: "sports ball", 38: "kite", 39: "baseball bat"},
    **{40: "baseball glove", 41: "skateboard", 42: "surfboard", 43: "tennis racket", 44: "bottle"},
    **{46: "wine glass", 47: "cup", 48: "fork", 49: "knife", 50: "spoon", 51: "bowl", 52: "banana", 53: "apple"},
    **{54: "sandwich", 55: "orange", 56: "broccoli", 57: "carrot", 58: "hot dog", 59: "pizza", 60: "donut"},
    **{61: "cake", 62: "chair", 63: "couch", 64: "potted plant", 65: "bed", 67: "dining table", 70: "toilet"},
    **{72: "tv", 73: "laptop", 74: "mouse", 75: "remote", 76: "keyboard", 77: "cell phone", 78: "microwave"},
    **{79: "oven", 80: "toaster", 81: "sink", 82: "refrigerator", 84: "book", 85: "clock", 86: "vase"},
    **{87: "scissors", 88: "teddy bear", 89: "hair drier", 90: "toothbrush"},
}
_VOC = ("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable")
_VOC += ("dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor")
VOC = dict(enumerate(_VOC, 1))
_KNOWN = {"coco": COCO, "voc": VOC}


@dataclass(frozen=True)
class ColumnLabels(LabelMap):
    """Classes of a list that has a line for every column; source_ids are the columns.

    Attributes:
      num_columns: columns in the list, those without a class included, the background's left out.
    """

    num_columns: int = 0


def choose_classes(source, num_columns, labels=None):
    """Decides which columns of a file's class heads stand for which classes.

    Args:
      source: source.DetectorSource.
      num_columns: columns an anchor has in the file; column 0 is background.
      labels: structures.LabelMap of the user's names, or ColumnLabels; None: those that the source is known to
        have.

    Returns:
      source.Classes. Columns without a name count to the background, or are dropped where each class has a
      sigmoid of its own.

    Raises:
      DataError: the names are unknown, or not as many as the columns.
    """
    names = _names_of_columns(source, num_columns, labels)
    rest = tuple(column for column in range(num_columns) if column not in names)
    by_column = labels is None or _is_coco(names, num_columns)
    return Classes(
        names=tuple(names.values()),
        source_ids=tuple(names) if by_column else labels.source_ids,
        background=rest if source.has_background else (),
        columns=tuple(names),
        total=num_columns,
    )


def describe_assumption(source):
    """Returns the line for a user who gave no labels: the names that choose_classes takes then."""
    known = f"{source.classes.upper()}'s {len(_KNOWN[source.classes])} names"
    return f"classes: {known} are assumed; --labels=FILE names others"


def _is_coco(names, num_columns):
    return num_columns == max(COCO) + 1 and set(names.values()) == set(COCO.values())


def _names_of_columns(source, num_columns, labels):
    """{column: name} of the columns that stand for classes, in the order of our ids."""
    num_classes = num_columns - 1
    if num_classes < 1:
        raise DataError("the file has no class beside the background")
    if labels is None:
        known = _KNOWN[source.classes]
        if num_classes != max(known):
            few = "1 class: name it" if num_classes == 1 else f"{num_classes} classes: name them"
            raise DataError(f"the file has {few} with --labels=FILE, one name a line")
        return known
    if isinstance(labels, ColumnLabels):
        if labels.num_columns != num_classes:
            lines = f"{labels.num_columns} lines of classes and {_NO_CLASS}"
            raise DataError(f"--labels has {lines}, the file has {num_classes} classes")
        return dict(zip(labels.source_ids, labels.names, strict=True))
    if len(labels) == num_classes:
        return dict(enumerate(labels.names, 1))
    if num_classes == max(COCO) and set(labels.names) == set(COCO.values()):
        columns = {name: column for column, name in COCO.items()}
        return {columns[name]: name for name in labels.names}
    ids = labels.source_ids
    if ids != tuple(range(1, len(ids) + 1)) and min(ids) >= 1 and max(ids) <= num_classes:  # a map with gaps
        if max(ids) < num_classes:  # the rest may have been cut off
            raise DataError(f"--labels ends at id {max(ids)}, the file has {num_classes} classes")
        return dict(zip(ids, labels.names, strict=True))
    raise DataError(f"--labels names {_count(len(labels))}, the file has {num_classes}")


def _count(number):
    return f"{number} class{'' if number == 1 else 'es'}"


def read_labels(path):
    """Reads names of classes.

    Args:
      path: text with one name a line (a first line BACKGROUND is left out, a line N/A stands for a column without
        a class), a label map of the TF Object Detection API (.pbtxt), or a label_map.json of ours.

    Returns:
      structures.LabelMap; its source_ids are the ids in the file, or the numbers of the names. ColumnLabels of a
      text with lines N/A.

    Raises:
      DataError: unreadable, no names, an empty one, or one twice; names the file and the line.
    """
    if Path(path).suffix.lower() == ".json":
        labels = LabelMap.from_json(fileio.read_json(path, _LIMIT), shown(path), allow_gaps=True)
    else:
        text = fileio.read_text(path, _LIMIT)
        labels = _read_map(text, path) if _IS_MAP.match(text) else _read_lines(text, path)
    if not labels.names:
        raise DataError(f"{shown(path)} names no class")
    return labels


def _read_lines(text, path):
    """The LabelMap of a text with one name a line."""
    lines = [line.strip() for line in text.rstrip().splitlines()]
    first = 1 if lines and lines[0].strip("_").lower() == "background" else 0
    seen = {}
    for number, name in enumerate(lines[first:], first + 1):
        if name == _NO_CLASS:
            continue
        where = f"{shown(path)}:{number}"
        _check_name(name, where)
        if name in seen:
            raise DataError(f"{where}: {shown(name)!r} stands in line {seen[name]} already")
        seen[name] = number
    names, columns = tuple(seen), tuple(number - first for number in seen.values())
    num_columns = len(lines) - first
    return LabelMap(names) if len(names) == num_columns else ColumnLabels(names, columns, num_columns)


def _check_name(name, where):
    if not name:
        raise DataError(f"{where}: a class without a name")
    if len(name) > _LONGEST or not is_text(name) or not name.isprintable():
        raise DataError(f"{where}: not the name of a class: {shown(name[:40])!r}")


def _read_map(text, path):
    """The LabelMap of a TF Object Detection label map, by id; the background's id 0 is left out."""
    tokens, rows = _tokens(text, path), []
    while tokens:
        line = tokens[-1][0]
        fields = _read_item(tokens, path)
        where = f"{shown(path)}:{line}"
        if not re.fullmatch(r"-?\d{1,9}", fields.get("id", "")):
            raise DataError(f"{where}: an item without an id")
        name = _unquote(fields.get("display_name") or fields.get("name", ""))
        _check_name(name, where)
        rows.append((int(fields["id"]), name))
    refuse_repeated(rows, shown(path), "item")
    if any(class_id < 0 for class_id, _ in rows):
        raise DataError(f"{shown(path)}: ids start at 1, 0 is the background")
    rows = sorted(row for row in rows if row[0] > 0)
    return LabelMap(tuple(name for _, name in rows), tuple(class_id for class_id, _ in rows))


def _tokens(text, path):
    """[(line, token)], the last one first."""
    tokens, place, line = [], 0, 1
    while place < len(text):
        found = _TOKEN.match(text, place)
        if found is None:
            raise DataError(f"{shown(path)}:{line}: no label map: {shown(text[place : place + 20])!r}")
        if found["token"]:
            tokens.append((line, found["token"]))
        line += found[0].count("\n")
        place = found.end()
    return tokens[::-1]


def _read_item(tokens, path):
    """{field: text} of the item whose tokens come last, which are taken away."""
    _take(tokens, path, "item")
    if tokens and tokens[-1][1] == ":":
        tokens.pop()
    _take(tokens, path, "{")
    fields = {}
    while tokens and tokens[-1][1] != "}":
        name = _take(tokens, path)
        if not tokens or tokens[-1][1] != "{":
            _take(tokens, path, ":")
        fields.setdefault(name, _take_value(tokens, path))
        while tokens and tokens[-1][1] in ",;":
            tokens.pop()
    _take(tokens, path, "}")
    return fields


def _take_value(tokens, path):
    """A field's text; the first bracket of a message or list, which is taken away as a whole."""
    value = _take(tokens, path)
    closing = [_CLOSING[value]] if value in _CLOSING else []
    while closing:
        if tokens and tokens[-1][1] in _CLOSING.values():
            _take(tokens, path, closing.pop())
        else:
            token = _take(tokens, path)
            closing += [_CLOSING[token]] if token in _CLOSING else []
    return value


def _take(tokens, path, expected=None):
    if not tokens:
        raise DataError(f"{shown(path)}: cut inside an item")
    line, token = tokens.pop()
    if expected and token != expected:
        raise DataError(f"{shown(path)}:{line}: expected {expected!r}, found {shown(token[:40])!r}")
    return token


def _unquote(token):
    """The text of a quoted token; escapes other than of quotes and backslashes stay as they are."""
    return re.sub(r"\\(['\"\\])", r"\1", token[1:-1]).strip() if token[:1] in ("'", '"') else ""
