"""Detectors of the TF Object Detection API, imported, compute what they do where they come from."""

import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from golden_cases import assert_fills, assert_postprocess

from ssd_tf import config as configs
from ssd_tf import fileio
from ssd_tf.api import build
from ssd_tf.errors import DataError
from ssd_tf.inference import postprocess, predictor
from ssd_tf.models import detector
from ssd_tf.pretrained import frozen_graph, places, tf_od, tfjs_file
from ssd_tf.pretrained.classes import COCO, choose_classes
from ssd_tf.structures import LabelMap

TFJS, TF_OD = tf_od.TFJS_COCO_SSD, tf_od.TF_OD_SSD_MOBILENET
PERSON = LabelMap(("person",), (1,))


def import_file(source, path, labels=None):
    """(Config, api.build.Detector) as an import makes them."""
    with source.open(path) as (shapes, read):
        classes = choose_classes(source, source.count_columns(shapes), labels)
        own = f"model.num_classes={len(classes.names)}"
        config = configs.load_config(None, [*source.settings(shapes), own])
        built = build.build(config, load_weights=False)
        targets = source.places(shapes, classes)
        assert_fills(targets, built.model)
        used = {name: shape for name, shape in shapes.items() if not source.is_unused(name)}
        places.fill(built.model, targets, used, read)
    return config, built


@pytest.fixture(scope="module")
def coco_ssd(weights):
    return import_file(TFJS, weights / "coco_ssdlite_mobilenet_v2")


@pytest.fixture(scope="module")
def references(weights):
    with np.load(weights / "coco_ssdlite_mobilenet_v2" / "reference_tensors_3images.npz") as values:
        return dict(values)


@pytest.mark.parametrize("photo", ["2007_000027", "2007_000032", "2007_000033"])
def test_coco_ssd_finds_the_boxes_and_scores_that_the_original_does(coco_ssd, references, photo):
    _, built = coco_ssd
    behind = keras.Model(built.model.get_layer("preprocess").output, built.model.output)
    outputs = behind(references[f"{photo}_input"])
    boxes, scores = postprocess.decode_scores(outputs, built.anchors, has_background=False, clip=False)
    np.testing.assert_allclose(boxes, references[f"{photo}_boxes_yxyx"], rtol=0, atol=1e-4)
    columns = [column - 1 for column in COCO]  # the reference leaves out that of the background
    expected = references[f"{photo}_scores90"][..., columns]
    assert expected.shape == (1, 1917, 80) and expected.max() > 0.8
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-4)


def test_coco_ssd_has_the_anchors_of_the_original(coco_ssd, weights):
    with tfjs_file.open_tfjs(weights / "coco_ssdlite_mobilenet_v2") as (_, read):
        expected = read("Postprocessor/ExpandDims")
    np.testing.assert_allclose(coco_ssd[1].anchors[None], expected, rtol=0, atol=1e-6)


def test_coco_ssd_finds_what_is_plainly_there(coco_ssd, references):
    config, built = coco_ssd
    pixels = np.rint((references["2007_000027_input"][0] + 1) * 127.5).astype(np.uint8)
    find = predictor.Predictor(built.model, built.anchors, config, LabelMap(tuple(COCO.values()), tuple(COCO)))
    found = find(pixels, 0.5)
    assert [find.label_map.name(class_id) for class_id in found.classes] == ["person"]
    assert found.scores[0] > 0.99
    np.testing.assert_allclose(found.boxes[0], [105, 59, 221, 205], rtol=0, atol=5)


def test_coco_ssd_has_folded_batch_norms_but_in_its_heads(coco_ssd):
    _, built = coco_ssd
    folded = {
        layer.name
        for layer in detector.batch_norms(built.model)
        if not np.any(layer.moving_mean) and np.all(layer.moving_variance + np.float32(layer.epsilon) == 1)
    }
    names = {layer.name for layer in detector.batch_norms(built.model)}
    assert names - folded == {name for name in names if name.startswith("head_")}
    assert len(names - folded) == 12 and len(folded) == 52 + 12


def test_settings_are_those_of_the_api(coco_ssd):
    config, _ = coco_ssd
    assert_postprocess(config, 1e-8, 0.6, 1917, 100, "after")
    assert config.data.resize == "bilinear_tf1" and config.loss.classification == "sigmoid"
    assert config.model.image_size == (300, 300) and config.model.activation == "relu6"


@pytest.fixture(scope="module")
def frozen(weights):
    return weights / "tf1_ssdlite_pedestrian" / "frozen_inference_graph.pb"


@pytest.fixture(scope="module")
def pedestrian(frozen):
    return import_file(TF_OD, frozen, PERSON)


@pytest.fixture(scope="module")
def photo(references):
    """A natural photo of the size that both networks resize to: uint8 [300, 300, 3]."""
    return np.rint((references["2007_000027_input"][0] + 1) * 127.5).astype(np.uint8)


@pytest.fixture(scope="module")
def executed(frozen, photo):
    """What the graph gives when TensorFlow runs it."""
    names = ["concat", "concat_1", "Concatenate/concat"]
    names += ["detection_boxes", "detection_scores", "detection_classes", "num_detections"]
    graph = tf.compat.v1.GraphDef.FromString(frozen.read_bytes())
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        tf.graph_util.import_graph_def(graph, name="")
        values = session.run([f"{name}:0" for name in names], {"image_tensor:0": photo[None]})
    return dict(zip(names, values, strict=True))


def test_frozen_graph_has_the_same_raw_heads_and_anchors(pedestrian, executed, photo):
    _, built = pedestrian
    outputs = built.model(photo[None])
    for found, expected in (
        (outputs["box_deltas"], executed["concat"][:, :, 0]),
        (outputs["class_logits"], executed["concat_1"][..., 1:]),
        (built.anchors, executed["Concatenate/concat"]),
    ):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_frozen_graph_has_the_same_detections(pedestrian, executed, photo):
    config, built = pedestrian
    found = predictor.Predictor(built.model, built.anchors, config, PERSON)(photo)
    assert len(found.boxes) == executed["num_detections"][0] == 100
    corners = executed["detection_boxes"][0][:, [1, 0, 3, 2]]
    np.testing.assert_allclose(found.boxes / 300, corners, rtol=0, atol=1e-4)
    np.testing.assert_allclose(found.scores, executed["detection_scores"][0], rtol=0, atol=1e-4)
    np.testing.assert_array_equal(found.classes, executed["detection_classes"][0])
    assert found.scores[0] > 0.99


class Written:
    """The API's SSD written down once more, over made-up variables that are made when they are asked for.

    Attributes:
      variables: {name in a checkpoint: array}.
    """

    def __init__(self, body, width, kernel, columns):
        self.body, self.width, self.kernel, self.columns = body, width, kernel, columns
        self.variables, self.random = {}, np.random.default_rng(5)

    def _get(self, name, shape, scale=1.0, shift=0.0):
        if name not in self.variables:
            values = self.random.standard_normal(shape) * scale + shift
            self.variables[name] = values.astype(np.float32)
        return self.variables[name]

    def convolve(self, x, name, channels, kernel=1, stride=1, active=True):
        """A convolution, or a depthwise one where `channels` is None, and its batch norm."""
        deep = x.shape[-1]
        if channels is None:
            weights = self._get(f"{name}/depthwise_weights", (3, 3, deep, 1), 0.4)
            x = tf.nn.depthwise_conv2d(x, weights, [1, stride, stride, 1], "SAME")
        else:
            scale = (2 / (kernel * kernel * deep)) ** 0.5
            weights = self._get(f"{name}/weights", (kernel, kernel, deep, channels), scale)
            x = tf.nn.conv2d(x, weights, stride, "SAME")
        size = (x.shape[-1],)
        gamma, beta = (self._get(f"{name}/BatchNorm/{part}", size, 0.1, 1) for part in ("gamma", "beta"))
        mean = self._get(f"{name}/BatchNorm/moving_mean", size, 0.1)
        variance = np.abs(self._get(f"{name}/BatchNorm/moving_variance", size, 0.1, 1))
        x = (x - mean) / np.sqrt(variance + 1e-3) * gamma + beta
        return tf.clip_by_value(x, 0, 6) if active else x

    def mobilenet_v1(self, x):
        base = "FeatureExtractor/MobilenetV1/Conv2d_"
        x = self.convolve(x, f"{base}0", int(32 * self.width), 3, 2)
        blocks = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
        for index, (channels, stride) in enumerate(blocks, 1):
            x = self.convolve(x, f"{base}{index}_depthwise", None, 3, stride)
            x = self.convolve(x, f"{base}{index}_pointwise", int(channels * self.width))
            if index == 11:
                yield x
        yield x

    def mobilenet_v2(self, x):
        base = "FeatureExtractor/MobilenetV2/"
        blocks = [(16, 1), (24, 2), (24, 1), (32, 2), *[(32, 1)] * 2, (64, 2), *[(64, 1)] * 3, *[(96, 1)] * 3]
        blocks += [(160, 2), *[(160, 1)] * 2, (320, 1)]
        x = self.convolve(x, f"{base}Conv", 32, 3, 2)
        for index, (channels, stride) in enumerate(blocks):
            block, before = f"{base}expanded_conv{f'_{index}' if index else ''}", x
            if index:
                x = self.convolve(x, f"{block}/expand", x.shape[-1] * 6)
            if index == 13:
                yield x
            x = self.convolve(x, f"{block}/depthwise", None, 3, stride)
            x = self.convolve(x, f"{block}/project", channels, active=False)
            x = x + before if stride == 1 and before.shape[-1] == channels else x
        yield self.convolve(x, f"{base}Conv_1", 1280)

    def heads(self, x, level):
        base, count = f"BoxPredictor_{level}", 6 if level else 3
        for kind, values in (("BoxEncodingPredictor", 4), ("ClassPredictor", self.columns)):
            shape = (self.kernel, self.kernel, x.shape[-1], count * values)
            kernel = self._get(f"{base}/{kind}/weights", shape, (x.shape[-1]) ** -0.5)
            bias = self._get(f"{base}/{kind}/biases", shape[-1:])
            rows = tf.nn.conv2d(x, kernel, 1, "SAME") + bias
            yield tf.reshape(rows, (1, -1, values))

    def __call__(self, pixels):
        """(box deltas [1, A, 4], logits [1, A, columns]) of uint8 [1, H, W, 3]."""
        x = tf.cast(pixels, tf.float32) * (2 / 255) - 1
        *_, x = maps = list(self.mobilenet_v1(x) if self.body == "MobilenetV1" else self.mobilenet_v2(x))
        last = {"MobilenetV1": "Conv2d_13_pointwise", "MobilenetV2": "layer_19"}[self.body]
        for level, channels in zip((2, 3, 4, 5), (512, 256, 256, 128), strict=True):
            base, half = f"FeatureExtractor/{self.body}/{last}", channels // 2
            x = self.convolve(x, f"{base}_1_Conv2d_{level}_1x1_{half}", half)
            x = self.convolve(x, f"{base}_2_Conv2d_{level}_3x3_s2_{channels}", channels, 3, 2)
            maps.append(x)
        return [tf.concat(rows, 1) for rows in zip(*(self.heads(x, i) for i, x in enumerate(maps)), strict=True)]


def write_checkpoint(prefix, variables):
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        made = [tf.compat.v1.get_variable(name, initializer=array) for name, array in variables.items()]
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver(made).save(session, str(prefix))


def labels_of(count):
    return LabelMap(tuple(f"class {number}" for number in range(count)), tuple(range(1, count + 1)))


@pytest.mark.parametrize(
    ("body", "width", "kernel", "heads"),
    [("MobilenetV1", 0.25, 1, "conv1x1"), ("MobilenetV1", 0.5, 3, "conv"), ("MobilenetV2", 1.0, 1, "conv1x1")],
)
def test_checkpoints_of_the_other_networks(tmp_path, body, width, kernel, heads):
    written = Written(body, width, kernel, columns=4)
    pixels = np.random.default_rng(1).integers(0, 256, (1, 300, 300, 3), np.uint8)
    deltas, logits = written(pixels)
    training = {"FeatureExtractor/global": np.zeros(1, np.float32), "global_step": np.array(1)}
    training["BoxPredictor_0/ClassPredictor/biases/Momentum"] = np.zeros(12, np.float32)
    write_checkpoint(tmp_path / "model.ckpt", {**written.variables, **training})
    assert open_all(tmp_path) == set(written.variables)
    config, built = import_file(TF_OD, tmp_path, labels_of(3))
    assert (config.model.heads, config.model.width, config.model.extras) == (heads, width, "conv")
    outputs = built.model(pixels)
    for found, expected in ((outputs["box_deltas"], deltas), (outputs["class_logits"], logits[..., 1:])):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.fixture(scope="module")
def shapes(frozen):
    """Those of the SSDLite."""
    with TF_OD.open(frozen) as (found, _):
        return {name: shape for name, shape in found.items() if not TF_OD.is_unused(name)}


def refusal(call, *args):
    with pytest.raises(DataError) as caught:
        call(*args)
    return str(caught.value)


HEAD = "BoxPredictor_0/"
EXTRA = "FeatureExtractor/MobilenetV2/layer_19_2_Conv2d_4_3x3_s2_256/weights"
LAST = "FeatureExtractor/MobilenetV2/expanded_conv_16/project/weights"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({EXTRA: None}, "weights do not fit: FeatureExtractor/MobilenetV2/..._2_Conv2d_4_... is missing"),
        ({EXTRA: ()}, f"weights do not fit: {EXTRA[:80]} is empty or a lone number"),
        ({LAST: None}, f"weights do not fit: {LAST} is missing"),
        (
            {f"{HEAD}BoxEncodingPredictor/biases": None},
            f"weights do not fit: {HEAD}BoxEncodingPredictor/biases is missing",
        ),
        (
            {f"{HEAD}BoxEncodingPredictor/biases": (24,)},
            "not 3 anchors on a cell of the finest level (reduce_boxes_in_lowest_layer)",
        ),
        (
            {
                f"{HEAD}BoxEncodingPredictor_depthwise/depthwise_weights": None,
                f"{HEAD}BoxEncodingPredictor/weights": None,
            },
            f"weights do not fit: {HEAD}BoxEncodingPredictor/weights is missing",
        ),
    ],
)
def test_settings_of_what_is_no_such_detector(shapes, changes, line):
    changed = {name: shape for name, shape in {**shapes, **changes}.items() if shape is not None}
    assert refusal(TF_OD.settings, changed) == line


def test_names_of_other_networks(shapes):
    line = "no SSD on MobileNet V1 or V2 of the Object Detection API: it has no FeatureExtractor/MobilenetV*"
    for others in ({}, {"features.0.weight": (3, 3)}, {"FeatureExtractor/InceptionV2/a/weights": (1,)}):
        assert refusal(TF_OD.settings, others) == line
    line = "weights do not fit: BoxPredictor_0/ClassPredictor/biases is missing"
    assert refusal(TF_OD.count_columns, {}) == line


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({LAST: (1, 1, 960, 320)}, ""),
        (
            {f"{HEAD}ClassPredictor/weights": (1, 1, 576, 9)},
            f"weights do not fit: {HEAD}ClassPredictor/weights is 1x1x576x9 in the file, expected 1x1x576x6",
        ),
        (
            {"BoxPredictor_0/Conv2d_0_1x1_64/weights": (1, 1, 576, 64)},
            "weights do not fit: BoxPredictor_0/Conv2d_0_1x1_64/weights is not part of the network",
        ),
        (
            {"FeatureExtractor/MobilenetV2/Conv/BatchNorm/gamma": None},
            "weights do not fit: FeatureExtractor/MobilenetV2/Conv/BatchNorm/gamma is missing",
        ),
    ],
)
def test_weights_that_do_not_fit(pedestrian, shapes, changes, line):
    changed = {name: shape for name, shape in {**shapes, **changes}.items() if shape is not None}
    classes = choose_classes(TF_OD, TF_OD.count_columns(changed), PERSON)
    targets = TF_OD.places(changed, classes)

    class Read(Exception):
        pass

    def read(name):
        raise Read  # nothing is read before all fits

    if line:
        assert refusal(places.fill, pedestrian[1].model, targets, changed, read) == line
    else:
        with pytest.raises(Read):
            places.fill(pedestrian[1].model, targets, changed, read)


def small_graph(*nodes, **arrays):
    """A frozen_graph.Graph of nodes "name:operation" and arrays."""
    arrays = {name.replace("__", "/"): np.asarray(array, np.float32) for name, array in arrays.items()}
    shapes = {name: array.shape for name, array in arrays.items()}
    return frozen_graph.Graph(dict(node.split(":") for node in nodes), frozenset(), shapes, arrays.__getitem__)


@pytest.mark.parametrize(
    ("graph", "line"),
    [
        (
            small_graph("Postprocessor/convert_scores:Softmax"),
            "scores by a softmax over the classes, expected a sigmoid of each (score_converter)",
        ),
        (
            frozen_graph.Graph({}, frozenset([0.001, 1e-5]), {}, None),
            "batch norms of epsilon 1e-05, expected 0.001",
        ),
        (small_graph(a__batchnorm__add__y=0.01), "batch norms of epsilon 0.01, expected 0.001"),
        (
            small_graph(Preprocessor__map__while__ResizeImage__stack=[0, 300]),
            "resizes images to 0x300, expected sides of 32 to 4096",
        ),
        (
            small_graph(Preprocessor__ResizeImage__stack=[300, np.nan]),
            "resizes images to 300xnan, expected sides of 32 to 4096",
        ),
        (
            small_graph(MultipleGridAnchorGenerator__Sqrt_3__x=[1, 2, 0.5, 1]),
            "other anchors than ssd_anchor_generator's usual ones: MultipleGridAnchorGenerator/Sqrt_3/x",
        ),
        (
            small_graph(Postprocessor__ExpandDims=np.zeros((1, 1917, 4))),
            "other anchors than ssd_anchor_generator's usual ones: Postprocessor/ExpandDims",
        ),
        (
            small_graph(Concatenate__concat=np.zeros((8732, 4))),
            "other anchors than ssd_anchor_generator's usual ones: Concatenate/concat",
        ),
    ],
)
def test_graphs_of_detectors_that_do_something_else(graph, line):
    assert refusal(tf_od._checked, graph) == line


@pytest.mark.parametrize("values", [[0.001, 0.001], [], [[0.5, 1], [2, 3]]])
def test_constants_that_are_no_epsilon(values):
    tf_od._checked(small_graph(a__batchnorm__add__y=values))


@pytest.mark.parametrize("values", [[0.01], [[0.01]]])
def test_epsilon_in_an_array(values):
    line = "batch norms of epsilon 0.01, expected 0.001"
    assert refusal(tf_od._checked, small_graph(a__batchnorm__add__y=values)) == line


def test_epsilon_that_is_no_number():
    line = "batch norms of epsilon nan, expected 0.001"
    assert refusal(tf_od._checked, small_graph(a__batchnorm__add__y=np.nan)) == line


@pytest.mark.parametrize("name", ["Concatenate/concat", "MultipleGridAnchorGenerator/Sqrt/x"])
def test_anchors_of_another_number_are_not_read(name):
    shape = (1 << 26, 4) if name.startswith("Conc") else (99,)
    graph = frozen_graph.Graph({}, frozenset(), {name: shape}, None)
    line = f"other anchors than ssd_anchor_generator's usual ones: {name}"
    assert refusal(tf_od._checked, graph) == line


def test_graph_tells_the_image_size(shapes):
    found, _ = tf_od._checked(small_graph(Preprocessor__map__while__ResizeImage__stack=[320, 512]))
    config = configs.load_config(None, TF_OD.settings({**shapes, **found}))
    assert config.model.image_size == (320, 512)
    assert configs.load_config(None, TF_OD.settings(shapes)).model.image_size == (300, 300)


@pytest.mark.parametrize("size", [(300, 300), (320, 320), (256, 500)])
def test_anchors_follow_the_image_size(shapes, size):
    overrides = [*TF_OD.settings({**shapes, tf_od._INPUT: (*size, 3)}), "model.num_classes=1"]
    config = configs.load_config(None, overrides)
    expected = build.build_anchors(config)
    assert config.postprocess.topk_candidates == len(expected)  # all boxes are looked at
    graph = small_graph(Postprocessor__ExpandDims=expected[None], Preprocessor__ResizeImage__stack=size)
    assert tf_od._checked(graph)[0][tf_od._INPUT] == (*size, 3)
    graph = small_graph(Postprocessor__ExpandDims=expected[None] + 1e-3, Preprocessor__ResizeImage__stack=size)
    assert refusal(tf_od._checked, graph).startswith("other anchors")


def test_what_open_chooses(tmp_path, frozen):
    assert refusal(open_all, tmp_path) == "the folder holds neither frozen_inference_graph.pb nor a checkpoint"
    assert refusal(open_all, tmp_path / "model.ckpt") == "no such file"
    write_checkpoint(tmp_path / "model.ckpt", {"FeatureExtractor/MobilenetV1/a/weights": np.ones(2, np.float32)})
    for path in (tmp_path, tmp_path / "model.ckpt", tmp_path / "model.ckpt.index"):
        assert open_all(path) == {"FeatureExtractor/MobilenetV1/a/weights"}
    shutil.copy(frozen, tmp_path)
    assert len(open_all(tmp_path)) == 404
    (tmp_path / "frozen_inference_graph.pb").write_bytes(frozen.read_bytes()[:-100])
    assert refusal(open_all, tmp_path) == "not a frozen graph, or cut"


def open_all(path):
    with TF_OD.open(path) as (shapes, _):
        return {name for name in shapes if not TF_OD.is_unused(name)}


def test_files_of_the_other_source(weights, frozen):
    tfjs = weights / "coco_ssdlite_mobilenet_v2"
    assert refusal(open_all, tfjs) == "the folder holds neither frozen_inference_graph.pb nor a checkpoint"
    assert refusal(open_all, tfjs / "model.json") == "not a frozen graph, or cut"
    with pytest.raises(DataError, match=r"^not a TensorFlow\.js model\.json$"), TFJS.open(frozen):
        pass


def test_downloads_are_the_files_that_the_tests_read(weights):
    folder = weights / "coco_ssdlite_mobilenet_v2"
    for download in TFJS.about.downloads:
        path = folder / download.url.rpartition("/")[2]
        assert path.stat().st_size == download.size
        assert fileio.sha256_file(path) == download.sha256
    assert TFJS.about.downloads[0].url.endswith("/model.json") and len(TFJS.about.downloads) == 6
    (download,) = TF_OD.about.downloads
    assert download.member == "ssd_mobilenet_v2_coco_2018_03_29/frozen_inference_graph.pb"
