"""Names of the weights of github.com/amdegroot/ssd.pytorch, and the layers of ours that they belong to."""

import contextlib

from ssd_tf.pretrained import torch_file
from ssd_tf.pretrained import torch_layout as layout
from ssd_tf.pretrained.catalogue import ENTRIES
from ssd_tf.pretrained.places import Place
from ssd_tf.pretrained.source import BackboneSource, DetectorSource

_SETTINGS = (
    *layout.SSD300_VGG16,
    "postprocess.score_threshold=0.01",
    "postprocess.nms_iou=0.45",
    "postprocess.topk_candidates=200",
    "postprocess.max_detections=200",
    "postprocess.clip=after",
)
# Blue minus red of filters of VGG16's first convolution, each summed over its 3x3 positions, as Keras' file has
# them: by these the order of another file's input channels is told.
_BLUE_MINUS_RED = {59: -3.26, 29: -3.07, 22: 2.95, 1: 2.89, 5: 2.75, 25: 2.5, 36: 2.36, 19: -2.26}


@contextlib.contextmanager
def _open_reducedfc(path):
    """torch_file.open_tensors, the first kernel's input in the order BGR, as our VGG16 takes it by default.

    Nothing published says in which order vgg16_reducedfc.pth has it: caffe's files have BGR, the author's networks
    are fed RGB.
    """
    with torch_file.open_tensors(path) as (shapes, read):

        def read_bgr(name):
            array = read(name)
            return array[:, ::-1] if name == "0.weight" and _is_rgb(array) else array

        yield shapes, read_bgr


def _is_rgb(kernel):
    first_minus_last = (kernel[:, 0] - kernel[:, -1]).sum(axis=(1, 2))
    return sum(first_minus_last[index] * value for index, value in _BLUE_MINUS_RED.items()) < 0


def _backbone_places(prefix):
    convolutions = ((f"{prefix}{index}", layer) for index, layer in layout.VGG16_LAYERS.items())
    return {name: place for pair in convolutions for name, place in layout.convolution(*pair).items()}


def _places(shapes, classes):
    places = {**_backbone_places("vgg."), "L2Norm.weight": Place(layout.VGG16_NORM, "gamma")}
    for number in range(8):
        layer = f"extra_{number // 2 + 1}"
        places |= layout.convolution(f"extras.{number}", layer if number % 2 else f"{layer}_reduce")
    for index, num_anchors in enumerate(layout.SSD300_ANCHORS):
        places |= layout.predictions(f"conf.{index}", f"loc.{index}", index + 1, num_anchors, classes)
    return places


SSD300 = DetectorSource(
    about=ENTRIES["amdegroot_ssd300"],
    open=torch_file.open_tensors,
    count_columns=layout.columns_of("conf.0.bias", layout.SSD300_ANCHORS[0]),
    settings=lambda shapes: _SETTINGS,
    places=_places,
    is_unused=layout.is_counter,
    has_background=True,
    classes="voc",
)
VGG16_REDUCEDFC = BackboneSource(
    about=ENTRIES["vgg16_reducedfc"],
    open=_open_reducedfc,
    places=lambda shapes: _backbone_places(""),
    is_unused=layout.is_counter,
)
