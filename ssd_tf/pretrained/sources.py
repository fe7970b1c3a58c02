"""Who reads what the catalogue lists."""

from ssd_tf.pretrained import amdegroot, qfgaohao, slim, tf_od, torchvision

SOURCES = {
    source.about.name: source
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
