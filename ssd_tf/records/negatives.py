"""How many images have no objects, as their conversion counted them: nothing is read for it."""

import contextlib
from pathlib import Path

from ssd_tf import fileio
from ssd_tf.errors import DataError
from ssd_tf.records.writer import REPORT


def count_empty(records):
    """Counts the images without objects, where that is known.

    Args:
      records: reader.RecordSet.

    Returns:
      int; 0 too where only parts of records directories are read, or their convert_report.json is gone.
    """
    if any(count >= 0 for count in records.counts):
        return 0
    return sum(_read_count(folder / REPORT) for folder in {Path(file).parent for file in records.files})


def _read_count(path):
    with contextlib.suppress(DataError):  # the report is there to be read by people; it may be gone
        report = fileio.read_json(path)
        count = report.get("images_without_objects") if isinstance(report, dict) else 0
        return count if type(count) is int and count > 0 else 0
    return 0
