"""What is known about the detectors and backbones that other people published."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Download:
    """A file as its owner publishes it.

    Attributes:
      url: where it lies.
      size: bytes, or 0 where not known.
      sha256: hexadecimal digits, or the first of them; "" where not known.
      member: path of the wanted file inside it, where it is a tar archive; else "".
    """

    url: str
    size: int = 0
    sha256: str = ""
    member: str = ""


@dataclass(frozen=True)
class Classes:
    """Which columns of a file's class heads stand for which classes.

    Attributes:
      names: of the classes, in the order of our ids 1..C.
      source_ids: the ids their owner uses.
      background: columns that mean no object; () where each class has a sigmoid of its own.
      columns: one column a class.
      total: columns an anchor has in the file.
    """

    names: tuple[str, ...]
    source_ids: tuple[int, ...]
    background: tuple[int, ...]
    columns: tuple[int, ...]
    total: int

    @property
    def order(self):
        """The file's columns in the order of our class heads."""
        return (*self.background, *self.columns)


@dataclass(frozen=True)
class DetectorSource:
    """A kind of file that holds a whole detector.

    Attributes:
      name: what --source calls it.
      summary: one line: network, data, published mAP.
      licence: of the weights.
      open: context manager (path) -> ({name: shape}, function from a name to its array, float32).
      count_columns: function ({name: shape}) -> columns of the class heads, background included.
      settings: function ({name: shape}) -> "section.key=value" texts, the network beside the defaults.
      places: function ({name: shape}, Classes) -> {name: places.Place}.
      is_unused: function (name) -> whether an array may be there and is not read.
      has_background: whether the scores are a softmax over background and classes.
      classes: "coco" or "voc": the names where the file has as many columns as that and no labels are given.
      downloads: what is fetched where no file is given; the first is what `open` gets.
    """

    name: str
    summary: str
    licence: str
    open: Callable
    count_columns: Callable
    settings: Callable
    places: Callable
    is_unused: Callable
    has_background: bool
    classes: str
    downloads: tuple[Download, ...] = ()


@dataclass(frozen=True)
class BackboneSource:
    """A kind of file that holds a backbone.

    Attributes:
      name, summary, licence, open, is_unused, downloads: as of a DetectorSource.
      backbone: the registered name.
      places: function ({name: shape}) -> {name: places.Place}, of all weights of the backbone.
    """

    name: str
    summary: str
    licence: str
    open: Callable
    backbone: str
    places: Callable
    is_unused: Callable
    downloads: tuple[Download, ...] = ()
