"""What can be imported, for people who choose."""

from ssd_tf.pretrained import sources
from ssd_tf.pretrained.source import DetectorSource


def describe():
    """Returns a dict for each source: name, kind ("detector" or "backbone"), backbone (None where the file tells),
    summary, licence, downloads (url, size, sha256 and member of each; empty texts and 0 where not known).
    """
    return [
        {
            "name": source.name,
            "kind": "detector" if isinstance(source, DetectorSource) else "backbone",
            "backbone": getattr(source, "backbone", None),
            "summary": source.summary,
            "licence": source.licence,
            "downloads": [dict(vars(file)) for file in source.downloads],
        }
        for source in sources.SOURCES.values()
    ]
