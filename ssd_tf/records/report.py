"""What happened to the images of a conversion, by name."""

import collections
from dataclasses import dataclass, field

from ssd_tf.errors import shown
from ssd_tf.structures import Problem

_LISTS = ("dropped", "swapped", "clipped", "converted", "odd")


@dataclass
class Report:
    """What happened to the images, by name; of one shard or of all.

    Attributes:
      problems: Problems; each cost an image.
      dropped, swapped, clipped, converted, odd: lines, one for each box or image.
      duplicates: lines, one for each image whose bytes came before under another id.
      num_images: records written.
      num_negatives: images without objects among them.
      num_boxes: {class name: boxes written}.
      digests: {SHA-256 of an image file, as bytes: the first source id that had it}.
    """

    problems: list = field(default_factory=list)
    dropped: list = field(default_factory=list)
    swapped: list = field(default_factory=list)
    clipped: list = field(default_factory=list)
    converted: list = field(default_factory=list)
    odd: list = field(default_factory=list)
    duplicates: list = field(default_factory=list)
    num_images: int = 0
    num_negatives: int = 0
    num_boxes: collections.Counter = field(default_factory=collections.Counter)
    digests: dict = field(default_factory=dict)

    def add(self, item, source_id):
        """Notes the fate of one example.

        Args:
          item: encoding.Encoded.
          source_id: the example's.
        """
        self.dropped += item.dropped
        if item.problem is not None:
            self.problems.append(item.problem)
            return
        self.swapped += item.swapped
        self.clipped += item.clipped
        self.converted += item.converted
        self.odd += item.odd
        self.num_images += 1
        self.num_negatives += not item.names
        self.num_boxes.update(item.names)
        self._add_digest(bytes.fromhex(item.digest), source_id)

    def _add_digest(self, digest, source_id):
        first = self.digests.setdefault(digest, source_id)
        if first != source_id:
            self.duplicates.append(f"same image bytes under two ids: {shown(first)} and {shown(source_id)}")

    def merge(self, other):
        """Adds the Report of the next shard."""
        self.problems += other.problems
        for name in (*_LISTS, "duplicates"):
            getattr(self, name).extend(getattr(other, name))
        self.num_images += other.num_images
        self.num_negatives += other.num_negatives
        self.num_boxes.update(other.num_boxes)
        for digest, source_id in other.digests.items():
            self._add_digest(digest, source_id)

    def compare(self, earlier):
        """Notes the images that stand in another set of the same data too: {digest: source id}."""
        for digest, source_id in self.digests.items():
            if digest in earlier:
                self.duplicates.append(
                    f"same image bytes in both sets: {shown(earlier[digest])} and {shown(source_id)}"
                )

    def to_json(self):
        """Returns the content of convert_report.json."""
        return {
            "skipped": [vars(problem) for problem in self.problems],
            **{name: getattr(self, name) for name in (*_LISTS, "duplicates")},
            "images_without_objects": self.num_negatives,
            "boxes": dict(sorted(self.num_boxes.items())),
        }

    def to_state(self):
        """Returns all of it as JSON values; `from_state` is the inverse."""
        return {
            **self.to_json(),
            "images": self.num_images,
            "digests": {digest.hex(): source_id for digest, source_id in self.digests.items()},
        }

    @classmethod
    def from_state(cls, state):
        """Rebuilds a Report; KeyError or TypeError if `state` is none."""
        return cls(
            problems=[Problem(**row) for row in state["skipped"]],
            **{name: list(state[name]) for name in (*_LISTS, "duplicates")},
            num_images=state["images"],
            num_negatives=state["images_without_objects"],
            num_boxes=collections.Counter(state["boxes"]),
            digests={bytes.fromhex(digest): source_id for digest, source_id in state["digests"].items()},
        )
