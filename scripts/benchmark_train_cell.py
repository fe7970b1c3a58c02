"""One cell of benchmark_train.py, which starts this script with the cell as JSON: a JSON line for each work."""

import json
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np

_RECIPES = Path(__file__).resolve().parents[1] / "configs"
_MATMULS = {"float32": "highest", "tf32": "tensorfloat32", "bfloat16": None}  # JAX's default_matmul_precision
_POLICIES = {"float32": "float32", "tf32": "float32", "bfloat16": "mixed_bfloat16"}
_OBJECTS = 5  # of an image
_IOU_THRESHOLD = 0.5
_WARM_UP = 2  # rounds after the first call, which compiles


def main():
    """Measures a cell and prints its figures, or says what there is to run on."""
    os.environ["KERAS_BACKEND"] = "jax"
    cell = json.loads(sys.argv[1])
    side = Ours if cell["side"] == "ours" else Torchvision
    if cell.get("probe"):
        print(json.dumps(side.describe()))
        return
    bench = side(cell)
    for work in cell["works"]:
        figures = time_work(getattr(bench, work), bench.wait, cell["rounds"], cell["steps"])
        row = {
            "work": work,
            **figures,
            "images_per_second": cell["batch"] * 1e3 / figures["ms"],
            "peak_mib": bench.read_peak(),
            "image_size": bench.image_size,
            **bench.describe(),
        }
        print(json.dumps(row), flush=True)


def time_work(work, wait, rounds, steps):
    """Times calls that run behind the caller's back.

    Args:
      work: function () -> what its device is still computing.
      wait: function (that) that returns once it is there.
      rounds: timed rounds.
      steps: calls of a round; only the last is waited for.

    Returns:
      {"first_ms": of the first call, compilation included, "ms": median of the rounds for one call, "spread": the
      slowest less the fastest round, divided by the median}.
    """
    seconds = []
    for count in (1, *[steps] * (_WARM_UP + rounds)):
        begun = time.perf_counter()
        for _ in range(count):
            result = work()
        wait(result)
        seconds.append((time.perf_counter() - begun) / count)
    timed = seconds[1 + _WARM_UP :]
    median = statistics.median(timed)
    return {"first_ms": seconds[0] * 1e3, "ms": median * 1e3, "spread": (max(timed) - min(timed)) / median}


def draw_objects(batch, classes):
    """Draws five objects for each image.

    Args:
      batch: B, images.
      classes: C.

    Returns:
      (boxes float32 [B, 5, 4] yxyx normalised, sides from .1 to .4; classes int32 [B, 5], 1..C).
    """
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 0.6, (batch, _OBJECTS, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(0.1, 0.4, corners.shape)], axis=-1)
    return boxes.astype(np.float32), rng.integers(1, classes + 1, boxes.shape[:2]).astype(np.int32)


def draw_images(batch, size):
    """Returns noise, uint8 [B, size, size, 3]."""
    return np.random.default_rng(1).integers(0, 256, (batch, size, size, 3), np.uint8)


def make_targets(boxes, classes, anchors):
    """What data.targets makes of one image, in NumPy.

    Args:
      boxes: float32 [N, 4], yxyx normalised, N > 0.
      classes: int32 [N], 1..C.
      anchors: float32 [A, 4], yxyx normalised.

    Returns:
      {"class_logits": int32 [A], "box_deltas": float32 [A, 5]}.
    """
    from ssd_tf.boxes import coder, ops

    overlaps = ops.iou(boxes, anchors)
    matched = np.where(overlaps.max(axis=0) >= _IOU_THRESHOLD, overlaps.argmax(axis=0), -1)
    best = overlaps.argmax(axis=1)
    for box in np.argsort(overlaps.max(axis=1), kind="stable"):  # the best claim of an anchor comes last
        matched[best[box]] = box
    positive = matched >= 0
    deltas = coder.encode(boxes[matched], anchors) * positive[:, None]
    rows = np.concatenate([deltas, positive[:, None]], axis=1)
    return {"class_logits": np.where(positive, classes[matched], 0), "box_deltas": rows.astype(np.float32)}


def make_batch(batch, size, classes, anchors):
    """Returns (images, targets, sample weights) as the input pipeline gives them, in NumPy."""
    rows = [make_targets(*objects, anchors) for objects in zip(*draw_objects(batch, classes), strict=True)]
    targets = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    num_positives = max((targets["class_logits"] > 0).sum(), 1)
    return draw_images(batch, size), targets, np.full(batch, batch / num_positives, np.float32)


class Ours:
    """A recipe's detector on JAX.

    Args:
      cell: dict of benchmark_train.make_cells.
    """

    def __init__(self, cell):
        import jax

        from ssd_tf import config as configs
        from ssd_tf.api import build

        jax.config.update("jax_default_matmul_precision", _MATMULS[cell["precision"]])
        overrides = ["model.weights=none", f"model.num_classes={cell['classes']}", "train.steps=1000000"]
        if cell["image_size"]:
            overrides += [f"model.image_size={cell['image_size']}", "anchors.preset=auto"]
        self.config = configs.load_config(_RECIPES / f"{cell['network']}.toml", overrides)
        self.image_size = self.config.model.image_size[0]
        detector = build.build(self.config, precision=_POLICIES[cell["precision"]])
        self.model, self.anchors = detector.model, jax.device_put(detector.anchors)
        batch = make_batch(cell["batch"], self.image_size, cell["classes"], detector.anchors)
        self.batch, self.state = jax.device_put(batch), None
        self.wait = jax.block_until_ready
        self._forward = jax.jit(self._call, static_argnames="with_nms")

    @staticmethod
    def describe():
        """Returns what JAX runs on."""
        import jax

        device = jax.local_devices()[0]
        versions = f"jax {jax.__version__}"
        return {"device": f"{device.device_kind} ({versions})", "accelerator": device.platform != "cpu"}

    def network(self):
        """Images to logits and deltas."""
        return self._forward(*self._weights(), self.batch[0], with_nms=False)

    def infer(self):
        """Images to detections."""
        return self._forward(*self._weights(), self.batch[0], with_nms=True)

    def train(self):
        """One update of the weights."""
        if self.state is None:
            self._compile()
        _, self.state = self.model.train_function(self.state, iter([self.batch]))
        return self.state

    def read_peak(self):
        """Returns MiB, the most that was in use so far, or None."""
        import jax

        stats = jax.local_devices()[0].memory_stats()
        return stats["peak_bytes_in_use"] / 2**20 if stats else None

    def _weights(self):
        return [[v.value for v in group] for group in (self.model.trainable_variables, self._rest())]

    def _rest(self):
        return self.model.non_trainable_variables

    def _call(self, trainable, rest, images, with_nms):
        from ssd_tf.inference.postprocess import postprocess

        outputs, _ = self.model.stateless_call(trainable, rest, images, training=False)
        if not with_nms:
            return outputs
        return postprocess(outputs, self.anchors, self.config.postprocess, self.config.loss.has_background)

    def _compile(self):
        """As training.trainer does it."""
        from ssd_tf.models import detector, freezing
        from ssd_tf.training import losses, optimizers

        settings, model = self.config.train, self.model
        detector.set_batch_norm(model, settings.batch_norm_momentum, settings.freeze_batch_norm)
        freezing.freeze(model, settings.freeze, settings.freeze_to)
        optimizer = optimizers.make_optimizer(settings)
        optimizers.fit_to(optimizer, model, settings)
        model.compile(optimizer, loss=losses.make_losses(self.config.loss, self.anchors), jit_compile="auto")
        model.train_on_batch(*self.batch)
        groups = model.trainable_variables, self._rest(), optimizer.variables, model.metrics_variables
        self.state = tuple([v.value for v in group] for group in groups)


class Torchvision:
    """torchvision's detector.

    Args:
      cell: dict of benchmark_train.make_cells.
    """

    def __init__(self, cell):
        import torch
        import torchvision

        from ssd_tf.config import PostprocessConfig

        self.device, self.image_size = self._device(), cell["image_size"]
        allow_tf32 = cell["precision"] == "tf32"
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allow_tf32
        torch.backends.cudnn.benchmark = True
        make = getattr(torchvision.models.detection, cell["network"])
        same = PostprocessConfig()
        self.model = make(
            weights=None,
            weights_backbone=None,
            num_classes=cell["classes"] + 1,
            score_thresh=same.score_threshold,
            nms_thresh=same.nms_iou,
            topk_candidates=same.topk_candidates,
            detections_per_img=same.max_detections,
        ).to(self.device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 1e-3, momentum=0.9, weight_decay=5e-4)
        pixels = torch.tensor(draw_images(cell["batch"], self.image_size), device=self.device)
        self.images = list(pixels.permute(0, 3, 1, 2).float() / 255)
        boxes, classes = draw_objects(cell["batch"], cell["classes"])
        boxes = torch.tensor(boxes[..., [1, 0, 3, 2]] * self.image_size, device=self.device)
        labels = torch.tensor(classes, dtype=torch.int64, device=self.device)
        self.targets = [{"boxes": b, "labels": c} for b, c in zip(boxes, labels)]
        self.cast = torch.autocast(self.device.type, torch.bfloat16, enabled=cell["precision"] == "bfloat16")

    @staticmethod
    def _device():
        import torch

        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @classmethod
    def describe(cls):
        """Returns what torch runs on."""
        import torch
        import torchvision

        device = cls._device()
        name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
        versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
        return {"device": f"{name} ({versions})", "accelerator": device.type == "cuda"}

    def network(self):
        """Images to logits and deltas."""
        import torch

        with torch.inference_mode(), self.cast:
            images, _ = self.model.eval().transform(self.images)
            return self.model.head(list(self.model.backbone(images.tensors).values()))

    def infer(self):
        """Images to detections."""
        import torch

        with torch.inference_mode(), self.cast:
            return self.model.eval()(self.images)

    def train(self):
        """One update of the weights."""
        with self.cast:
            loss = sum(self.model.train()(self.images, self.targets).values())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def wait(self, _):
        """Returns once the device has done all."""
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def read_peak(self):
        """Returns MiB, the most that was in use so far, or None."""
        import torch

        return torch.cuda.max_memory_allocated() / 2**20 if self.device.type == "cuda" else None


if __name__ == "__main__":
    main()
