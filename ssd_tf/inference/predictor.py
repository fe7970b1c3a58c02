"""A trained detector that takes images and gives Detections."""

import os

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from ssd_tf import fileio, images
from ssd_tf.boxes import ops
from ssd_tf.errors import DataError
from ssd_tf.inference import drawing
from ssd_tf.inference.postprocess import postprocess
from ssd_tf.structures import Detections

_BATCH = 8


class Predictor:
    """Calls a detector on images.

    Args:
      model: keras.Model of models.detector.
      anchors: float32 [A, 4], yxyx normalised.
      config: Config of the run.
      label_map: LabelMap of the run.
    """

    def __init__(self, model, anchors, config, label_map):
        self.model, self.config, self.label_map = model, config, label_map
        self._detect = _compile(model, keras.ops.convert_to_tensor(anchors), config)

    def __call__(self, image, score_threshold=None):
        """Detects objects.

        Args:
          image: path, uint8 [H, W, 3] RGB array, Pillow image, or a list of these.
          score_threshold: drop detections below; by default the run's postprocess.score_threshold.

        Returns:
          Detections, or a list of them for a list; boxes in pixels of the image as displayed.

        Raises:
          DataError: a file that is no usable image, or an array of another shape or dtype.
        """
        if isinstance(image, (list, tuple)):
            return self._detect_list(image, score_threshold or 0.0)
        return self._detect_list([image], score_threshold or 0.0)[0]

    def _detect_list(self, sources, score_threshold):
        found = []
        for first in range(0, len(sources), _BATCH):
            pixels = [as_rgb(source) for source in sources[first : first + _BATCH]]
            batch = tf.stack([self._resize(image) for image in pixels])
            found += self.detect_batch(batch, [image.shape[:2] for image in pixels])
        return [detections.above(score_threshold) for detections in found]

    def _resize(self, image):
        return images.to_uint8(images.resize(image, self.config.model.image_size, self.config.data.resize))

    def detect_batch(self, batch, sizes):
        """Detects objects in images that have the network's size already.

        Args:
          batch: uint8 [B, H, W, 3].
          sizes: B pairs (height, width): the original images' pixels, the unit of the boxes returned.

        Returns:
          list of B Detections.
        """
        boxes, scores, classes, counts = (np.asarray(value) for value in self._detect(batch))
        scale = np.asarray(sizes, np.float32)[:, None, [1, 0, 1, 0]]
        boxes = ops.yxyx_to_xyxy(boxes) * scale
        return [
            Detections(boxes[i, :count], scores[i, :count], classes[i, :count]) for i, count in enumerate(counts)
        ]

    def warm_up(self, batch_size):
        """Traces and compiles, so that a timing that follows measures detection alone."""
        self.detect_batch(
            tf.zeros([batch_size, *self.config.model.image_size, 3], tf.uint8), [(1, 1)] * batch_size
        )

    def draw(self, image, detections, score_threshold=0.0):
        """Returns uint8 [H, W, 3] RGB: the image with boxes, names and scores drawn."""
        chosen = detections.above(score_threshold)
        labels = [f"{self.label_map.name(c)} {s:.2f}" for c, s in zip(chosen.classes, chosen.scores)]
        return drawing.draw_boxes(as_rgb(image), chosen.boxes, labels, chosen.classes)

    def save(self, path, image, detections, score_threshold=0.0):
        """Writes the image with boxes drawn to `path`, atomically; the suffix names the format."""
        data = drawing.encode(self.draw(image, detections, score_threshold), path)
        with fileio.atomic_write(path) as file:
            file.write(data)


def _compile(model, anchors, config):
    """A function from uint8 [B, H, W, 3] to what postprocess returns, compiled as the backend does it."""

    def detect(batch):
        outputs = model(batch, training=False)
        return postprocess(outputs, anchors, config.postprocess, config.loss.has_background)

    if keras.backend.backend() == "tensorflow":
        shape = (None, *config.model.image_size, 3)
        return tf.function(detect, input_signature=[tf.TensorSpec(shape, tf.uint8)])
    whole = _Whole(model, detect)
    return lambda batch: whole.predict_on_batch(np.asarray(batch))


class _Whole(keras.Model):
    """A network with its post-processing, for Keras to compile."""

    def __init__(self, model, detect):
        super().__init__()
        self.network, self.detect = model, detect
        self.built = True

    def call(self, batch):
        return self.detect(batch)


def as_rgb(source):
    """Returns uint8 [H, W, 3] RGB pixels of a path, an array or a Pillow image."""
    if isinstance(source, (str, os.PathLike)):
        return images.read_rgb(source)
    if isinstance(source, Image.Image):
        return np.asarray(images.upright_rgb(source))
    array = np.asarray(source)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise DataError(f"an image is uint8 [H, W, 3] RGB, got {array.dtype} {list(array.shape)}")
    return array


def detect_records(predictor, batches, progress=None):
    """Runs a detector over a data set.

    Args:
      predictor: Predictor.
      batches: iterable of (uint8 [B, H, W, 3], string [B] source ids, int32 [B, 2] sizes).
      progress: function (images done), or None.

    Returns:
      {source id: Detections}.
    """
    found = {}
    for batch, source_ids, sizes in batches:
        names = [name.decode("utf-8", "surrogateescape") for name in source_ids.numpy()]
        found.update(zip(names, predictor.detect_batch(batch, sizes.numpy())))
        if progress:
            progress(len(found))
    return found
