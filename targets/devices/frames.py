"""Batches to the agent and logits back: one .npy behind its length for each batch, one checked answer for each."""

import base64
import binascii
import io
import struct
from collections.abc import Iterable, Iterator

import numpy as np

from kdpipe.foundation.errors import UnavailableError
from kdpipe.foundation.predictor import Float32Array
from kdpipe.targets.devices.messages import Logits, Message


def frame(batch: Float32Array, sizes: list[int]) -> bytes:
    """What the agent reads for a batch; its number of samples is appended to `sizes`, for the check of the answer."""
    content = io.BytesIO()
    np.save(content, np.ascontiguousarray(batch, dtype=np.float32), allow_pickle=False)
    sizes.append(len(batch))
    return struct.pack(">Q", len(content.getvalue())) + content.getvalue()


def logits_of(messages: Iterable[Message], sizes: list[int], *, device: str) -> Iterator[Float32Array]:
    """The logits in each answer, (samples of its batch, classes), finite; UnavailableError where an answer is not that, or one is missing."""
    classes, answered = None, 0
    for message in messages:
        if not isinstance(message, Logits):
            continue
        try:
            values = np.frombuffer(base64.b64decode(message.float32, validate=True), dtype="<f4").reshape(message.shape).astype(np.float32)
        except (binascii.Error, ValueError) as error:
            raise _wrong(f"{message.shape} was announced, {len(message.float32)} characters came", device) from error
        classes = classes or values.shape[1]
        if answered >= len(sizes) or values.shape != (sizes[answered], classes):
            wanted = sizes[answered] if answered < len(sizes) else 0
            raise _wrong(f"logits for {values.shape[0]} samples and {values.shape[1]} classes, {wanted} and {classes} are needed", device)
        if not np.isfinite(values).all():
            raise _wrong("logits that are NaN or infinite", device)
        answered += 1
        yield values
    if answered != len(sizes):
        raise _wrong(f"answers to {answered} of {len(sizes)} batches", device)


def _wrong(what: str, device: str) -> UnavailableError:
    return UnavailableError(f"the device's answer is not valid: {what}", at=f"device {device}", do="run it again; if it stays, the agent there is damaged")
