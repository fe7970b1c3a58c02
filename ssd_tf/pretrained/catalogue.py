"""What others have published and can be imported: the one list, which loads neither networks nor readers."""

from dataclasses import dataclass

from ssd_tf.errors import ConfigError, suggest


@dataclass(frozen=True)
class Download:
    """A file as its owner publishes it.

    Attributes:
      url: where it lies.
      size: bytes, or 0 where not known.
      sha256: hexadecimal digits, or the first of them; "" where not known.
      member: path of the wanted file inside it, where it is a tar archive; else "".
    """

    url: str
    size: int = 0
    sha256: str = ""
    member: str = ""


@dataclass(frozen=True)
class Entry:
    """What is said of a source; source.DetectorSource and source.BackboneSource know how to read it.

    Attributes:
      name: what --source calls it.
      summary: one line: network, data, published result.
      licence: of the weights.
      downloads: what is fetched where no file is given; the first is what the source's `open` gets.
      backbone: registered name of the backbone that it fills; "" where it is a whole detector.
      others: files beside them that are not fetched: for --weights or --labels.
    """

    name: str
    summary: str
    licence: str
    downloads: tuple[Download, ...] = ()
    backbone: str = ""
    others: tuple[Download, ...] = ()

    @property
    def kind(self):
        """Returns "detector" or "backbone"."""
        return "backbone" if self.backbone else "detector"


_TFJS = "https://storage.googleapis.com/tfjs-models/savedmodel/ssdlite_mobilenet_v2"
_TFJS_FILES = (
    ("model.json", 527315, "3770b2528339b1e3340cb74360e1e40401816b009779aeb8d0cce3a4353ea3a9"),
    ("group1-shard1of5", 4194304, "0e7af0f713e98521252321f7f84892c31cefccccec3ac64c84e5065b75ed5646"),
    ("group1-shard2of5", 4194304, "74cc6cfc2c4510c9cd81b8ad4cebf6f6a8f305119bb365ce0eb96276da38519a"),
    ("group1-shard3of5", 4194304, "50383033f893eae136392a403e8f70ade5efd90867df5695c4ca5ac640e14f38"),
    ("group1-shard4of5", 4194304, "d856dc534c780068bbf6c666ce1516df2c8433d87578aa31fcdf197de7058cc2"),
    ("group1-shard5of5", 1257312, "3d356f1fb6dfca6af78c56db34d9326706d0196e303f9de6b04f236ca79ed309"),
)


def _zoo(name, size, sha256):
    """A detector of the TF1 Object Detection API's zoo."""
    url = f"http://download.tensorflow.org/models/object_detection/{name}.tar.gz"
    return Download(url, size, sha256, f"{name}/frozen_inference_graph.pb")


_TORCHVISION = "https://download.pytorch.org/models/"
_AMDEGROOT = "https://s3.amazonaws.com/amdegroot-models/"
_QFGAOHAO = "https://storage.googleapis.com/models-hao/"


def _qfgaohao(name, summary, file):
    labels = Download(f"{_QFGAOHAO}voc-model-labels.txt")
    return Entry(f"qfgaohao_{name}", summary, "MIT", (Download(f"{_QFGAOHAO}{file}"),), others=(labels,))


_DETECTORS = (
    Entry(
        "tfjs_coco_ssd",
        "SSDLite on MobileNet V2, 300 px, COCO, as TensorFlow.js' coco-ssd loads it; mAP .22",
        "Apache-2.0",
        tuple(Download(f"{_TFJS}/{name}", size, sha256) for name, size, sha256 in _TFJS_FILES),
    ),
    Entry(
        "tf_od_ssd_mobilenet",
        "SSD and SSDLite on MobileNet V1 and V2 of the TF1 Object Detection API, frozen or as checkpoints; "
        "fetched is ssd_mobilenet_v2_coco, 300 px, mAP .22 "
        "(ssd_mobilenet_v1_coco .21, ssdlite_mobilenet_v2_coco .22)",
        "Apache-2.0",
        (
            _zoo(
                "ssd_mobilenet_v2_coco_2018_03_29",
                187925923,
                "b9380178b2e35333f1a735e39745928488bdabeb9ed20bc6fa07af8172cb5adc",
            ),
        ),
        others=(
            _zoo(
                "ssd_mobilenet_v1_coco_2018_01_28",
                76541073,
                "8788f89108519fd1102b8a5c2ac861cf6d86603571b6ce5bbd1c245b7fe005e3",
            ),
            _zoo(
                "ssdlite_mobilenet_v2_coco_2018_05_09",
                0,
                "542445cce834dbfbb7df1991425d475e85a2d7ec68c60a4f262bb18aac10c8b2",
            ),
        ),
    ),
    Entry(
        "torchvision_ssd300_vgg16",
        "SSD300 VGG16, COCO train2017, COCO AP 25.1",
        "BSD-3-Clause",
        (
            Download(
                f"{_TORCHVISION}ssd300_vgg16_coco-b556d3b4.pth",
                142594222,
                "b556d3b43ab6c3f63d81bfb8835fe8756ac22da664357da100dccf96b6a6b42d",
            ),
        ),
    ),
    Entry(
        "torchvision_ssdlite320_mobilenet_v3_large",
        "SSDLite320 MobileNetV3 Large, COCO train2017, COCO AP 21.3",
        "BSD-3-Clause",
        (
            Download(
                f"{_TORCHVISION}ssdlite320_mobilenet_v3_large_coco-a79551df.pth",
                14069355,
                "a79551df90c79834bcd3bb3845ef9d966b5449a3a9b2833ae8404778ca5d65d2",
            ),
        ),
    ),
    Entry(
        "amdegroot_ssd300",
        "SSD300 VGG16, VOC 07+12, VOC07 mAP 77.43",
        "MIT",
        (Download(f"{_AMDEGROOT}ssd300_mAP_77.43_v2.pth"),),
    ),
    _qfgaohao("mb1_ssd", "SSD300 MobileNetV1, VOC 07+12, VOC07 mAP 67.6", "mobilenet-v1-ssd-mp-0_675.pth"),
    _qfgaohao("mb2_ssd_lite", "SSDLite300 MobileNetV2, VOC 07+12, VOC07 mAP 68.6", "mb2-ssd-lite-mp-0_686.pth"),
    _qfgaohao("vgg16_ssd", "SSD300 VGG16, VOC 07+12, VOC07 mAP 77.3", "vgg16-ssd-mp-0_7726.pth"),
)

_BUCKET = "https://storage.googleapis.com/download.tensorflow.org/models"
_MOBILE_BUCKET = "https://storage.googleapis.com/mobilenet_v2/checkpoints"
_RESNETS = {50: ("75.2", "75.6"), 101: ("76.4", "77.0"), 152: ("76.8", "77.8")}  # top-1 of version 1 and 2


def _slim(name, backbone, summary, url, member, licence="Apache-2.0"):
    """A classifier of TF-slim; `member` is the checkpoint's name, which its files' names begin with."""
    about = f"{summary} of TF-slim, ImageNet"
    return Entry(f"slim_{name}", about, licence, (Download(url, member=member),), backbone)


def _slim_resnets():
    for version, date, ending, licence in (
        (1, "2016_08_28", "", "Apache-2.0; the authors' own, converted: MIT"),
        (2, "2017_04_14", "_v2", "Apache-2.0"),
    ):
        for depth, accuracies in _RESNETS.items():
            name = f"resnet_v{version}_{depth}"
            url = f"{_BUCKET}/{name}_{date}.tar.gz"
            summary = f"ResNet-{depth} V{version} (top-1 {accuracies[version - 1]} %)"
            yield _slim(name, f"resnet{depth}{ending}", summary, url, f"{name}.ckpt", licence)


_BACKBONES = (
    Entry(
        "vgg16_reducedfc",
        "VGG16 with fc6 and fc7 reduced as SSD uses it, ImageNet",
        "MIT",
        (Download(f"{_AMDEGROOT}vgg16_reducedfc.pth"),),
        "vgg16",
    ),
    _slim(
        "vgg_16",
        "vgg16",
        "VGG16 (top-1 71.5 %), fc6 and fc7 thinned out,",
        f"{_BUCKET}/vgg_16_2016_08_28.tar.gz",
        "vgg_16.ckpt",
        "Apache-2.0; the authors' own, converted: CC BY 4.0",
    ),
    *_slim_resnets(),
    _slim(
        "mobilenet_v1",
        "mobilenet_v1",
        "MobileNet V1 (top-1 70.9 %)",
        f"{_BUCKET}/mobilenet_v1_2018_02_22/mobilenet_v1_1.0_224.tgz",
        "mobilenet_v1_1.0_224.ckpt",
    ),
    _slim(
        "mobilenet_v2",
        "mobilenet_v2",
        "MobileNet V2 (top-1 71.8 %)",
        f"{_MOBILE_BUCKET}/mobilenet_v2_1.0_224.tgz",
        "mobilenet_v2_1.0_224.ckpt",
    ),
    _slim(
        "inception_v4",
        "inception_v4",
        "Inception V4 (top-1 80.2 %)",
        f"{_BUCKET}/inception_v4_2016_09_09.tar.gz",
        "inception_v4.ckpt",
    ),
    _slim(
        "inception_resnet_v2",
        "inception_resnet_v2",
        "Inception-ResNet V2 (top-1 80.4 %)",
        f"{_BUCKET}/inception_resnet_v2_2016_08_30.tar.gz",
        "inception_resnet_v2_2016_08_30.ckpt",
    ),
)

ENTRIES = {entry.name: entry for entry in (*_DETECTORS, *_BACKBONES)}


def get_entry(name):
    """Returns the Entry called `name`.

    Raises:
      ConfigError: there is none; names the nearest.
    """
    if name not in ENTRIES:
        raise ConfigError(f"unknown source {name!r}{suggest(name, ENTRIES)}; there are: {', '.join(ENTRIES)}")
    return ENTRIES[name]
