"""How files of detectors and backbones that other people published are read."""

from collections.abc import Callable
from dataclasses import dataclass

from ssd_tf.pretrained.catalogue import Entry


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
      about: its entry in the catalogue.
      open: context manager (path) -> ({name: shape}, function from a name to its array, float32).
      count_columns: function ({name: shape}) -> columns of the class heads, background included.
      settings: function ({name: shape}) -> "section.key=value" texts, the network beside the defaults.
      places: function ({name: shape}, Classes) -> {name: places.Place}.
      is_unused: function (name) -> whether an array may be there and is not read.
      has_background: whether the scores are a softmax over background and classes.
      classes: "coco" or "voc": the names where the file has as many columns as that and no labels are given.
    """

    about: Entry
    open: Callable
    count_columns: Callable
    settings: Callable
    places: Callable
    is_unused: Callable
    has_background: bool
    classes: str


@dataclass(frozen=True)
class BackboneSource:
    """A kind of file that holds a backbone.

    Attributes:
      about, open, is_unused: as of a DetectorSource.
      places: function ({name: shape}) -> {name: places.Place}, of all weights of the backbone.
    """

    about: Entry
    open: Callable
    places: Callable
    is_unused: Callable
