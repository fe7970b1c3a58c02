"""TFRecord's framing: length (8 bytes), its checksum, the record, its checksum. Without TensorFlow."""

import functools
import os
import struct

import google_crc32c

HEADER, FOOTER = 12, 4
_DELTA = 0xA282EAD8  # the masked CRC-32C of tsl/lib/hash/crc32c.h


def masked_checksum(*parts):
    """Returns the checksum of some bytes as it is stored: CRC-32C, rotated by 15 bits, plus a constant."""
    value = functools.reduce(google_crc32c.extend, parts, 0)
    return struct.pack("<I", ((value >> 15 | value << 17) + _DELTA) & 0xFFFFFFFF)


def frame(*parts):
    """Returns (header, footer) of the record that is these bytes joined."""
    length = struct.pack("<Q", sum(map(len, parts)))
    return length + masked_checksum(length), masked_checksum(*parts)


def read_frames(path):
    """Yields (header, record, footer) of each record; the checksums are left to the caller.

    Raises:
      ValueError: a record reaches beyond the end of the file; names the byte where it begins.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        while header := file.read(HEADER):
            length = int.from_bytes(header[:8], "little")
            begin = file.tell()
            if len(header) < HEADER or length > size - begin - FOOTER:
                raise ValueError(f"corrupted record at byte {begin - len(header)}")
            yield header, file.read(length), file.read(FOOTER)
