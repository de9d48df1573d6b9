"""Real networks quantized by any recipe, and what their libraries answer."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import nybble
from benchmarks.accuracy import BATCH, Task
from nybble.model import Artifact, QuantizedModel
from nybble.passes import pipeline
from nybble.passes.biases import give_biases
from nybble.passes.calibrate import Ranges, calibrate
from nybble.passes.correction.run import correct
from nybble.passes.correction.spool import Spool
from nybble.passes.settle import Settled, settle
from nybble.recipe import Recipe
from nybble.report.progress import step

CHECKED = 2  # images on which the library is compared with the law
Outputs = NDArray[np.float32]


class Bench:
    """A network, calibrated once for each calibrator and width of activations.

    Args:
        task: the network and its images.

    Attributes:
        module: float canonical, with a bias behind every layer.
        input: name of its only input.
    """

    def __init__(self, task: Task):
        self.task = task
        steps = [(give_biases.name, give_biases)]
        canonical = pipeline.canonicalize(task.model.module)
        self.module = pipeline.run(canonical, steps, "float", "float")
        self.input = str(self.module["main"].params[0].name)
        self._known: dict[tuple[str, int], Ranges] = {}

    def ranges(self, recipe: Recipe) -> Ranges:
        """Of activations; those of the largest values are the same for all widths."""
        key = (recipe.calibrator, 8 if recipe.calibrator == "minmax" else int(recipe.activations))
        if key not in self._known:
            title = f"calibrate {self.task.name}, {recipe.calibrator}"
            with step(title, len(self.task.calibration)) as report:
                batches = [{self.input: self.task.calibration}]
                ticking = lambda done: report(done, None)  # noqa: E731
                self._known[key] = calibrate(self.module, batches, recipe, ticking)
        return self._known[key]

    def spooled(self) -> Spool:
        """The calibration data, to be closed by the caller."""
        samples = Spool()
        samples.add({self.input: self.task.calibration})
        return samples

    def settled(self, recipe: Recipe, title: str) -> tuple[Settled, float]:
        """The network in numbers, and the seconds of CPU that its corrections took."""
        settled = settle(self.module, self.ranges(recipe), recipe)
        with self.spooled() as samples, step(title) as report:
            start = time.process_time()
            settled = correct(settled, samples, recipe, report)
            return settled, time.process_time() - start

    def outputs(self, settled: Settled, recipe: Recipe) -> Outputs:
        """What the library answers to all images, (N, classes).

        Raises:
            SystemExit: it differs from the law.
        """
        module = pipeline.insert(settled)
        quantized = QuantizedModel(module, pipeline.to_integer(module, recipe), recipe)
        found = self._run(nybble.compile(quantized))
        some = self.task.images[:CHECKED]
        if not np.array_equal(found[:CHECKED], np.asarray(quantized.run(some))):
            raise SystemExit(f"{self.task.name}: the library differs from the law")
        return found

    def float_outputs(self) -> Outputs:
        """What the float network answers, (N, classes)."""
        return self._run(nybble.compile(self.task.model))

    def top1(self, outputs: Outputs) -> float:
        """Percent of right answers."""
        return 100 * float(np.mean(outputs.argmax(-1) == self.task.labels))

    def _run(self, artifact: Artifact) -> Outputs:
        with tempfile.TemporaryDirectory() as folder:
            deployed = nybble.load(artifact.save(Path(folder) / "net.so"))
            starts = range(0, len(self.task.images), BATCH)
            parts = [np.asarray(deployed(self.task.images[i : i + BATCH])) for i in starts]
        return np.concatenate(parts)


def divergence(float_outputs: Outputs, outputs: Outputs) -> float:
    """Mean KL divergence of the classes' probabilities, in nats: finer than top-1."""
    wanted, made = _log_softmax(float_outputs), _log_softmax(outputs)
    return float((np.exp(wanted) * (wanted - made)).sum(axis=1).mean())


def _log_softmax(scores: Outputs) -> NDArray[np.float64]:
    shifted = scores.astype(np.float64) - scores.max(axis=1, keepdims=True)
    logs: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logs
