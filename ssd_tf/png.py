"""PNG files looked at without a decoder: Pillow shows more of them than libpng, TensorFlow's decoder, reads."""

import contextlib
import re
import struct
import zlib

from ssd_tf.errors import DataError, shown

# ISO 15948: samples of a pixel and their bits by colour type; (left, top, step across, step down) of Adam7.
_PIXELS = {0: (1, (1, 2, 4, 8, 16)), 2: (3, (8, 16)), 3: (1, (1, 2, 4, 8)), 4: (2, (8, 16)), 6: (4, (8, 16))}
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_LAST_FILTER = 4
_ORDER = re.compile(rb"IHDR(?: \w+)*?(?: PLTE)?(?: \w+)*?(?: IDAT)+(?: \w+)*? IEND")


def bit_depth(data):
    """Returns the bits of a sample as a PNG's header states them."""
    return data[24]


def read_chunks(data, name):
    """Splits a PNG into its chunks.

    Args:
      data: the file's bytes.
      name: the file's name, for messages.

    Returns:
      list of (kind, content), both bytes, up to the end that the file states.

    Raises:
      DataError: a checksum is wrong, or the end is missing.
    """
    chunks, at = [], 8
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 8 + length
        if end + 4 > len(data):
            break
        if zlib.crc32(memoryview(data)[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise DataError(f"bad image: damaged PNG (checksum of the chunk at byte {at:,}): {shown(name)}")
        chunks.append((kind, data[at + 8 : end]))
        if kind == b"IEND":
            return chunks
        at = end + 4
    raise DataError(f"bad image: truncated PNG (got {len(data):,} bytes): {shown(name)}")


def is_strict(chunks):
    """Tells whether a PNG has its chunks in order and exactly its pixels, unpacked once to make sure.

    Args:
      chunks: what `read_chunks` returns.
    """
    kinds = [kind for kind, _ in chunks]
    critical = [kind for kind in kinds if not kind[0] & 0x20]
    content = dict(reversed(chunks))
    if not _ORDER.fullmatch(b" ".join(kinds)) or critical != _expected_order(critical):
        return False
    rows = _rows(content[b"IHDR"], content.get(b"PLTE"))
    return bool(rows) and _holds_rows(b"".join(part for kind, part in chunks if kind == b"IDAT"), rows)


def _expected_order(critical):
    palette = [b"PLTE"] if b"PLTE" in critical else []
    return [b"IHDR", *palette, *[b"IDAT"] * critical.count(b"IDAT"), b"IEND"]


def _rows(header, palette):
    """(bytes of a row, number of rows) of each pass, or () if the header states what cannot be."""
    if len(header) != 13:
        return ()
    width, height, depth, color, compression, filtering, interlace = struct.unpack(">IIBBBBB", header)
    samples, depths = _PIXELS.get(color, (0, ()))
    if depth not in depths or compression or filtering or interlace > 1 or (color == 3 and not palette):
        return ()
    if palette is not None and (color in (0, 4) or len(palette) % 3 or len(palette) > 3 << min(depth, 8)):
        return ()
    passes = _ADAM7 if interlace else ((0, 0, 1, 1),)
    sizes = [(-(-(width - x) // across), -(-(height - y) // down)) for x, y, across, down in passes]
    return [(1 + -(-columns * samples * depth // 8), count) for columns, count in sizes if columns > 0 < count]


def _holds_rows(packed, rows):
    """Tells whether compressed pixels are exactly `rows`, each beginning with a filter that there is."""
    unpacker, at = zlib.decompressobj(), 0
    with contextlib.suppress(zlib.error):
        pixels = unpacker.decompress(packed, sum(size * count for size, count in rows) + 1)
        for size, count in rows:
            if max(pixels[at : at + size * count : size], default=_LAST_FILTER + 1) > _LAST_FILTER:
                return False
            at += size * count
        return unpacker.eof and at == len(pixels)
    return False
