"""JPEG files looked at without a decoder: whether libjpeg, TensorFlow's too, will read them."""

import bisect
import functools

import numpy as np

# JPEG markers (ITU-T T.81, table B.1).
_EOI, _SOS, _DQT, _DHT, _DRI, _COM = 0xD9, 0xDA, 0xDB, 0xC4, 0xDD, 0xFE
_SOF = {0xC0, 0xC1, 0xC2}  # baseline, extended, progressive
_APP1 = 0xE1  # EXIF, XMP
_MOST_BLOCKS = 10  # of one interleaved unit (B.2.3)
_SKIPPED = {_COM, *range(0xE0, 0xF0)}


def follow(data):
    """Follows a JPEG from marker to marker to its end.

    The segments that decoders give up over are looked at. A fault in the compressed pixels that looks like
    pixels stays unseen; decoders do not stumble over it either.

    Args:
      data: the file's bytes.

    Returns:
      Segments, or None if a decoder could stumble.
    """
    values = np.frombuffer(data, np.uint8)
    # Between pixels 0xFF is followed by 0 or by a restart marker; fill bytes may precede a marker.
    places = np.flatnonzero((values[:-1] == 0xFF) & (values[1:] != 0))
    kinds = values[places + 1]
    markers = places[((kinds < 0xD0) | (kinds > 0xD7)) & (kinds != 0xFF)].tolist()
    at, segments = 2, Segments()
    while (index := bisect.bisect_left(markers, at)) < len(markers):
        if not segments.num_scans and data[at : markers[index]].strip(b"\xff"):
            return None
        at = markers[index]
        if data[at + 1] == _EOI:
            return segments if segments.num_scans else None
        length = int.from_bytes(data[at + 2 : at + 4])
        content = data[at + 4 : at + 2 + length]
        if length < 2 or len(content) != length - 2 or not segments.take(data[at + 1], content):
            return None
        at += 2 + length
    return None


class Segments:
    """What the segments of a JPEG define.

    Attributes:
      size: (height, width) in pixels.
      components: {id: sampling factors and quantization table}; one for grey, three for colour.
      has_metadata: whether there is EXIF or XMP.
    """

    def __init__(self):
        self.tables, self.components, self.size = set(), {}, (0, 0)
        self.progressive = self.has_metadata = False
        self.num_scans = 0

    def take(self, kind, content):
        """Notes one segment; returns False where a decoder would give up."""
        if kind == _DRI:
            return len(content) == 2
        if kind in _SKIPPED:
            self.has_metadata |= kind == _APP1
            return True
        if kind in (_DQT, _DHT):
            found = _read_tables(kind, content)
            self.tables |= found
            return bool(found)
        try:
            if kind in _SOF:
                return not self.components and self._take_frame(kind, content)
            return kind == _SOS and self._take_scan(content)
        except (IndexError, KeyError, ValueError):  # shorter than it says, or of a component that is none
            return False

    def _take_frame(self, kind, content):
        self.progressive = kind == 0xC2
        self.size = int.from_bytes(content[1:3]), int.from_bytes(content[3:5])
        self.components = {content[at]: content[at + 1 : at + 3] for at in range(6, len(content), 3)}
        factors_fit = all(
            all(1 <= factor <= 4 and max(factors) % factor == 0 for factor in factors)
            for factors in zip(*((part[0] >> 4, part[0] & 15) for part in self.components.values()))
        )
        counts_fit = len(content) == 6 + 3 * content[5] and len(self.components) == content[5] > 0
        return content[0] == 8 and 0 not in self.size and factors_fit and counts_fit

    def _take_scan(self, content):
        self.num_scans += 1
        parts = list(zip(content[1:-3:2], content[2:-3:2]))
        first, last, shifts = content[-3:]
        if self.progressive and not _is_progressive_scan(first, last, shifts >> 4, shifts & 15, len(parts)):
            return False
        blocks = [(self.components[part][0] >> 4) * (self.components[part][0] & 15) for part in dict(parts)]
        if len(blocks) != len(parts) or (len(parts) > 1 and sum(blocks) > _MOST_BLOCKS):
            return False
        needed = {(_DQT, 0, self.components[part][1]) for part, _ in parts}
        for _, tables in parts:
            if first == 0 and not (self.progressive and shifts >> 4):
                needed.add((_DHT, 0, tables >> 4))
            if first > 0 or not self.progressive:
                needed.add((_DHT, 1, tables & 15))
        fits = len(content) == 4 + 2 * content[0] and 0 < len(parts) == content[0]
        return fits and needed <= self.tables


def _is_progressive_scan(first, last, before, now, num_parts):
    """Tells whether a scan's band of coefficients and its bits, from `before` down to `now`, can be."""
    band = last == 0 if first == 0 else first <= last < 64 and num_parts == 1
    return band and now <= 13 and (before == 0 or now == before - 1)


@functools.lru_cache(1024)  # most files share a few
def _read_tables(kind, content):
    """{(kind, class, place)} of the tables in a DQT or DHT segment; empty if a decoder would refuse them."""
    found, at = set(), 0
    while at < len(content):
        group, place, counts = content[at] >> 4, content[at] & 15, content[at + 1 : at + 17]
        if group > 1 or place > 3:
            return frozenset()
        if kind == _DQT:
            at += 65 + 64 * group
        else:
            codes = sum(count << (15 - length) for length, count in enumerate(counts))  # of 16 bits
            symbols = content[at + 17 : at + 17 + sum(counts)]
            if sum(counts) > 256 or codes >= 1 << 16 or (group == 0 and max(symbols, default=0) > 15):
                return frozenset()
            at += 17 + sum(counts)
        found.add((kind, group if kind == _DHT else 0, place))
    return frozenset(found) if at == len(content) else frozenset()
