"""All that can be imported: the one list of sources."""

from ssd_tf.errors import ConfigError, suggest
from ssd_tf.pretrained import amdegroot, qfgaohao, slim, tf_od, torchvision

SOURCES = {
    source.name: source
    for source in (
        tf_od.TFJS_COCO_SSD,
        tf_od.TF_OD_SSD_MOBILENET,
        torchvision.SSD300_VGG16,
        torchvision.SSDLITE320_MOBILENET_V3_LARGE,
        amdegroot.SSD300,
        qfgaohao.MB1_SSD,
        qfgaohao.MB2_SSD_LITE,
        qfgaohao.VGG16_SSD,
        amdegroot.VGG16_REDUCEDFC,
        *slim.SOURCES,
    )
}


def get_source(name):
    """Returns the source.DetectorSource or source.BackboneSource called `name`.

    Raises:
      ConfigError: there is none; names the nearest.
    """
    if name not in SOURCES:
        raise ConfigError(f"unknown source {name!r}{suggest(name, SOURCES)}; there are: {', '.join(SOURCES)}")
    return SOURCES[name]
