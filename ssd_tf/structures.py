"""The things that travel between rooms: label maps, examples, detections, and what was wrong."""

import functools
from dataclasses import dataclass

import numpy as np

from ssd_tf.errors import DataError, is_text, suggest

_FEW = 32  # flags of more objects repeat too seldom to be shared


@dataclass(frozen=True)
class LabelMap:
    """Classes with ids 1..C; id 0 is background and has no entry.

    Attributes:
      names: class names; the class of id i is `names[i - 1]`.
      source_ids: the ids the data set's owner uses (COCO's 1..90), one a class.
    """

    names: tuple[str, ...]
    source_ids: tuple[int, ...] = ()

    def __post_init__(self):
        if not self.source_ids:
            object.__setattr__(self, "source_ids", tuple(range(1, len(self.names) + 1)))
        if len(set(self.names)) != len(self.names):
            twice = next(name for name in self.names if self.names.count(name) > 1)
            raise DataError(f"class {twice!r} stands twice in the label map")
        if len(self.source_ids) != len(self.names) or len(set(self.source_ids)) != len(self.names):
            raise DataError("the label map needs one distinct source id a class")

    def __len__(self):
        return len(self.names)

    def name(self, class_id):
        """Returns the name of class `class_id` (1..C)."""
        if not 1 <= class_id <= len(self.names):
            raise DataError(f"class id {class_id} is not in 1..{len(self.names)}")
        return self.names[class_id - 1]

    def id(self, name):
        """Returns the id (1..C) of the class called `name`."""
        try:
            return self.names.index(name) + 1
        except ValueError:
            raise DataError(f"unknown class {name!r}{suggest(name, self.names)}") from None

    def check_same(self, other, here, there):
        """Raises DataError unless `other` gives the same names the same ids.

        Args:
          other: LabelMap.
          here, there: how the message speaks of the two, such as "run has" and "shards have".
        """
        for class_id, name in enumerate(other.names, 1):
            own = self.id(name) if name in self.names else None
            if own != class_id:
                known = f"no {name!r}" if own is None else f"{name!r} = {own}"
                raise DataError(f"class map differs: {there} {name!r} = {class_id}, {here} {known}")
        if len(other) != len(self):
            raise DataError(f"class map differs: {there} {len(other)} classes, {here} {len(self)}")

    def to_json(self):
        """Returns the content of label_map.json."""
        rows = zip(range(1, len(self) + 1), self.names, self.source_ids, strict=True)
        return {"classes": [{"id": i, "name": name, "source_id": source} for i, name, source in rows]}

    @classmethod
    def from_json(cls, value, where, allow_gaps=False):
        """Reads the content of a label_map.json.

        Args:
          value: the parsed file.
          where: names the file in errors.
          allow_gaps: accept ids such as 1, 2, 4; the classes are counted anew, their ids become source ids.

        Raises:
          DataError: malformed; an id or a name twice, an id below 1, or a gap: both entries are named.
        """
        try:
            rows = [(row["id"], row["name"], row.get("source_id", row["id"])) for row in value["classes"]]
        except (TypeError, KeyError, AttributeError):
            raise DataError(f'{where}: expected {{"classes": [{{"id": 1, "name": ...}}]}}') from None
        for position, (class_id, name, source) in enumerate(rows, 1):
            if type(class_id) is not int or type(source) is not int or not is_text(name):
                raise DataError(f"{where}: class {position}: id must be an integer and name a text")
        refuse_repeated(rows, where, "class")
        _check_ids(rows, where, allow_gaps)
        rows.sort()
        try:
            return cls(tuple(row[1] for row in rows), tuple(row[2] for row in rows))
        except DataError as error:
            raise DataError(f"{where}: {error}") from None


def refuse_repeated(rows, where, what):
    """Raises DataError if two entries of a list of classes share an id or a name; both are named.

    Args:
      rows: (id, name, ...) of each entry.
      where: names the file.
      what: what an entry is called, such as "class".
    """
    for column, key, other in ((0, "id", "name"), (1, "name", "id")):
        first = {}
        for position, row in enumerate(rows, 1):
            before = first.setdefault(row[column], position)
            if before != position:
                both = " and ".join(
                    f"{what} {place} ({other} {rows[place - 1][1 - column]!r})" for place in (before, position)
                )
                raise DataError(f"{where}: {both} have the same {key} {row[column]!r}")


def _check_ids(rows, where, allow_gaps):
    """Raises DataError unless the ids count from 1, without gaps unless they are allowed."""
    places = sorted((row[0], position, row[1]) for position, row in enumerate(rows, 1))
    if places and places[0][0] < 1:
        named = [f"class {position} ({name!r}) has id {class_id}" for class_id, position, name in places[:2]]
        raise DataError(f"{where}: ids start at 1, 0 is the background: {', '.join(named)}")
    before = (0, 0, "")
    for place in () if allow_gaps else places:
        if place[0] != before[0] + 1:
            after = f" after class {before[1]} ({before[2]!r}) with {before[0]}" if before[0] else ""
            raise DataError(
                f"{where}: gap in the ids: class {place[1]} ({place[2]!r}) has id {place[0]}{after}; "
                "--allow_gaps accepts it"
            )
        before = place


@dataclass(frozen=True)
class Problem:
    """Something in the user's data that keeps an image from being used.

    Attributes:
      kind: short stable code, such as "bad image" or "unknown class"; problems are counted by it.
      source: the file (or image id) concerned.
      message: the whole line for the user; names the file and the place.
    """

    kind: str
    source: str
    message: str


@functools.lru_cache(4096)
def _shared_flags(*flags):
    """A read-only bool array, one for all images with these flags."""
    array = np.array(flags, bool)
    array.flags.writeable = False
    return array


def _full_flags(given, count, name):
    if len(given) > count:
        raise ValueError(f"{len(given)} flags {name} for {count} boxes")
    flags = np.asarray(given, bool).tolist() if len(given) else []
    flags += [False] * (count - len(flags))
    return _shared_flags(*flags) if count <= _FEW else np.array(flags, bool)


_NO_BOXES = np.zeros([0, 4])
_NO_BOXES.flags.writeable = False


@dataclass(frozen=True, slots=True)
class Example:
    """One annotated image; pixels are not in it. Small: a conversion holds one for each image of the set.

    Attributes:
      source_id: the image's id in its data set.
      image: path of the image file, "" when the pixels are in a record.
      boxes: float64 [N, 4], yxyx, continuous coordinates in `unit`.
      names: class name of each box.
      unit: "pixel" or "normalised" (to [0, 1]).
      size: (height, width) in pixels as the annotation states it, or None.
      difficult, crowd, truncated: bool [N], read-only; given shorter, the rest is False.
      area: float64 [N] as annotated, in pixels, or None where the format has none.
      dropped: one line for each annotated box that the reader left out, and why.
      swapped: one line for each inverted box whose edges the reader exchanged.
    """

    source_id: str
    image: str
    boxes: np.ndarray
    names: tuple[str, ...]
    unit: str = "pixel"
    size: tuple[int, int] | None = None
    difficult: np.ndarray = ()
    crowd: np.ndarray = ()
    truncated: np.ndarray = ()
    area: np.ndarray | None = None
    dropped: tuple[str, ...] = ()
    swapped: tuple[str, ...] = ()

    def __post_init__(self):
        count = len(self.names)
        boxes = np.asarray(self.boxes, np.float64)
        if boxes.shape != (count, 4):
            boxes = boxes.reshape(count, 4)
        object.__setattr__(self, "boxes", boxes if count else _NO_BOXES)
        for name in ("difficult", "crowd", "truncated"):
            object.__setattr__(self, name, _full_flags(getattr(self, name), count, name))


@dataclass(frozen=True)
class Detections:
    """What was found in one image, best first.

    Attributes:
      boxes: float32 [N, 4], xyxy in pixels of the image, inside it.
      scores: float32 [N], in [0, 1], not increasing.
      classes: int32 [N], ids 1..C.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray

    def __len__(self):
        return len(self.scores)

    def above(self, threshold):
        """Returns the detections with a score of at least `threshold`."""
        keep = self.scores >= threshold
        return Detections(self.boxes[keep], self.scores[keep], self.classes[keep])

    def __repr__(self):
        rows = [
            f"class {c} {s:.2f} [{b[0]:.0f} {b[1]:.0f} {b[2]:.0f} {b[3]:.0f}]"
            for b, s, c in list(zip(self.boxes, self.scores, self.classes, strict=True))[:5]
        ]
        more = f", ... {len(self) - 5} more" if len(self) > 5 else ""
        return f"Detections({len(self)}: {', '.join(rows)}{more})"
