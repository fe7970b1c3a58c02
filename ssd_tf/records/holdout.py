"""A data set without splits, split."""

import hashlib

from ssd_tf.errors import DataError


def hold_out(examples, fraction, seed):
    """Chooses the examples to validate on.

    The choice follows from the seed and the source ids alone: neither the order nor the other images matter to
    which of two comes first, so a few new images move few old ones.

    Args:
      examples: Examples.
      fraction: share to validate on, in (0, 1); at least one example lands on each side.
      seed: int.

    Returns:
      (list of Examples to train on, list of Examples to validate on), each in the order given.

    Raises:
      DataError: fewer than two examples.
    """

    if len(examples) < 2:
        raise DataError(f"--val_fraction needs two images or more, found {len(examples)}")

    def rank(example):
        return hashlib.sha256(f"{seed}:{example.source_id}".encode("utf-8", "surrogateescape")).digest()

    count = min(max(round(len(examples) * fraction), 1), len(examples) - 1)
    chosen = {example.source_id for example in sorted(examples, key=rank)[:count]}
    parts = ([], [])
    for example in examples:
        parts[example.source_id in chosen].append(example)
    return parts
