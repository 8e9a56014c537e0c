"""Judge one model: parse it, let the job's program predict with it, compute the loss.

The program sees the model and the features, never the labels; the loss is computed here, so neither the poster's
program nor a model can invent one. The bytes that are parsed are the bytes the program gets: they are written to a
folder of this evaluation's own, whatever the spec names as its model.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from crdtchain.adapters.models import parse_model, parse_npy, parse_predictions
from crdtchain.errors import ModelError
from crdtchain.learning.schema import ModelSchema
from crdtchain.scalars import Micros
from node.worker.metrics import CLASS_METRICS, check_labels, compute_loss_micros, test_accuracy
from node.worker.sandbox.base import Mode, Progress, RunResult, RunSpec, Sandbox, Status

LABELS_BYTES_MAX = 2**28
"""The largest blob there is."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What came of judging a model.

    Attributes:
        status: `OK`; `BAD_OUTPUT` when the model or the predictions are not what they must be; else the run's.
        loss_micros: the loss in millionths; None unless the status is OK.
        accuracy: the share of right rows, for people; None when the metric is not about classes.
        reason: one sentence; empty when the status is OK.
        result: the sandbox's own result; None when the model was refused before anything ran.
    """

    status: Status
    loss_micros: Micros | None = None
    accuracy: float | None = None
    reason: str = ""
    result: RunResult | None = None


async def evaluate(
    sandbox: Sandbox,
    spec: RunSpec,
    metric: str,
    labels: bytes,
    model: bytes,
    schema: ModelSchema,
    on_progress: Callable[[Progress], None] | None = None,
    cancel: asyncio.Event | None = None,
) -> Evaluation:
    """Compute a model's loss in a sandbox.

    Args:
        sandbox: where the program runs.
        spec: a predict run; its `model` is replaced by the bytes given here.
        metric: a key of `METRICS`.
        labels: an npy file.
        model: the committed blob.
        schema: what the job says a model looks like.
        on_progress, cancel: as for `Sandbox.run`.

    Raises:
        ModelError: the labels are not what the metric needs: the job can't be judged by anyone.
        SandboxError: the sandbox can't be used at all.
        ValueError: the spec is not a predict run.
    """
    if spec.mode is not Mode.PREDICT:
        raise ValueError("an evaluation is a predict run")
    truth = await asyncio.to_thread(parse_npy, labels, LABELS_BYTES_MAX)
    check_labels(metric, truth)
    try:
        await asyncio.to_thread(parse_model, model, schema)
    except ModelError as error:
        return Evaluation(Status.BAD_OUTPUT, reason=f"The model is refused: {error}.")
    with tempfile.TemporaryDirectory(prefix="crdtchain-evaluate-") as folder:
        path = Path(folder) / schema.file_name
        await asyncio.to_thread(path.write_bytes, model)
        result = await sandbox.run(replace(spec, model={schema.file_name: path}), on_progress, cancel)
    if result.status is not Status.OK:
        return Evaluation(result.status, reason=result.reason, result=result)
    try:
        data = result.files.get("predictions.npy", b"")
        predictions = await asyncio.to_thread(parse_predictions, data, spec.resources.disk_mib * 2**20)
        loss = await asyncio.to_thread(compute_loss_micros, metric, predictions, truth)
        accuracy = test_accuracy(predictions, truth) if metric in CLASS_METRICS else None
    except ModelError as error:
        return Evaluation(Status.BAD_OUTPUT, reason=f"The predictions are refused: {error}.", result=result)
    return Evaluation(Status.OK, loss, accuracy, result=result)
