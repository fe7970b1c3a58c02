"""One example to the bytes of its record, or to the reason why it cannot be one."""

import hashlib
import os
from dataclasses import dataclass, fields

import numpy as np

from ssd_tf import fileio, images
from ssd_tf.errors import ConfigError, DataError, shown, suggest
from ssd_tf.records import normalise, remarks, schema
from ssd_tf.structures import Problem

ON_ERROR = ("fail", "skip")


@dataclass(frozen=True)
class WriteOptions:
    """How examples become records.

    Attributes:
      exif, verify: see images.standardise.
      max_pixels: larger images are refused.
      on_error: "fail" writes nothing if any image is bad; "skip" leaves bad images out.
      max_skipped: with "skip", more bad images than this are an error: below 1 a fraction of all, else a count.
      workers: processes; 0 for as many as there are cores.
    """

    exif: str = "apply"
    max_pixels: int = images.MAX_PIXELS
    verify: str = "structure"
    on_error: str = "fail"
    max_skipped: float = 0.01
    workers: int = 0

    def __post_init__(self):
        choices = {"exif": images.EXIF_MODES, "verify": images.VERIFY_MODES, "on_error": ON_ERROR}
        for name, allowed in choices.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ConfigError(f"--{name}: {value!r} is none of {', '.join(allowed)}{suggest(value, allowed)}")
        if self.workers < 0 or self.max_skipped < 0 or self.max_pixels < 1:
            raise ConfigError("--workers and --max_skipped are at least 0, --max_pixels at least 1")

    @classmethod
    def of(cls, values):
        """Returns the options in a dict; ConfigError names one that does not exist."""
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise ConfigError(f"unknown option {name}{suggest(name, known)}")
        return cls(**values)

    def deciding(self):
        """Returns those options that decide the bytes of a record, by name."""
        return {"exif": self.exif, "max_pixels": self.max_pixels, "verify": self.verify}


@dataclass(frozen=True, slots=True)
class Encoded:
    """One example on its way into a shard; `problem` instead of bytes where it cannot go.

    Attributes:
      parts: bytes of its record in three parts, the middle one the image's.
      problem: Problem or None.
      names: class names of the boxes written.
      digest: hexadecimal SHA-256 of the image file.
      image_digest: SHA-256 of the middle part.
      clipped, dropped, converted, swapped, odd: lines for the report.
    """

    parts: tuple[bytes, bytes, bytes] = (b"", b"", b"")
    problem: Problem | None = None
    names: tuple = ()
    digest: str = ""
    image_digest: bytes = b""
    clipped: tuple = ()
    dropped: tuple = ()
    converted: tuple = ()
    swapped: tuple = ()
    odd: tuple = ()


def encode_example(example, label_map, options):
    """Reads an example's image, once, and makes its record.

    Args:
      example: Example with the path of its image.
      label_map: LabelMap that knows its class names.
      options: WriteOptions.

    Returns:
      Encoded.
    """
    try:
        data = fileio.read_bytes(example.image, images.MAX_FILE_BYTES)
        picture = images.standardise(data, example.image, options.exif, options.max_pixels, options.verify)
        normalise.check_size(example, picture.height, picture.width)
        return _serialize(example, data, picture, label_map)
    except DataError as error:
        kind = str(error).split(":")[0]
        return Encoded(problem=Problem(kind, shown(example.image), str(error)), dropped=example.dropped)


def _serialize(example, data, picture, label_map):
    fitted = normalise.fit_boxes(example, picture.height, picture.width)
    kept = fitted.kept
    names = tuple([example.names[index] for index in kept])
    digest = hashlib.sha256(data)
    parts = schema.encode(
        picture,
        fitted.boxes,
        [label_map.id(name) for name in names],
        names,
        example.source_id,
        os.path.basename(example.image),
        digest.hexdigest(),
        _areas(example, picture)[kept],
        {flag: getattr(example, flag)[kept] for flag in ("crowd", "difficult", "truncated")},
    )
    stored = digest if picture.data is data else hashlib.sha256(picture.data)
    return Encoded(
        parts=parts,
        names=names,
        digest=digest.hexdigest(),
        image_digest=stored.digest(),
        clipped=fitted.clipped,
        dropped=example.dropped + fitted.dropped,
        converted=tuple(f"{change}: {shown(example.image)}" for change in picture.changes),
        swapped=example.swapped,
        odd=remarks.describe_oddities(data, picture.height, picture.width, example.image),
    )


def _areas(example, picture):
    """float64 [N], pixels: as annotated, else the annotated box's."""
    if example.area is not None and np.isfinite(example.area).all():
        return example.area
    sides = example.boxes[:, 2:] - example.boxes[:, :2]
    own = sides[:, 0] * sides[:, 1]
    if example.unit == "normalised":
        own = own * (picture.height * picture.width)
    return own if example.area is None else np.where(np.isfinite(example.area), example.area, own)
