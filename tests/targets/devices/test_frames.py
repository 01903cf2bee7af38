import base64
import io
import struct

import numpy as np
import pytest

from kdpipe.foundation.errors import UnavailableError
from kdpipe.targets.devices.frames import frame, logits_of
from kdpipe.targets.devices.messages import Logits


def answer(values: np.ndarray, shape: tuple[int, int] | None = None) -> Logits:
    return Logits(kind="logits", shape=shape or values.shape, float32=base64.b64encode(values.astype("<f4").tobytes()).decode())


def test_a_frame_is_an_npy_behind_its_length(samples):
    sizes = []
    content = frame(samples[:3], sizes)
    assert sizes == [3]
    assert struct.unpack(">Q", content[:8]) == (len(content) - 8,)
    assert np.array_equal(np.load(io.BytesIO(content[8:])), samples[:3])


def test_answers_come_back_bit_for_bit():
    values = np.random.default_rng(0).standard_normal((4, 10)).astype(np.float32)
    (got,) = logits_of([answer(values)], [4], device="pi")
    assert np.array_equal(got, values)


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([answer(np.zeros((3, 10)))], "logits for 3 samples and 10 classes, 4 and 10 are needed"),
        ([answer(np.zeros((4, 10)), (4, 11))], "(4, 11) was announced, 216 characters came"),
        ([Logits(kind="logits", shape=(4, 1), float32="!!")], "(4, 1) was announced, 2 characters came"),
        ([answer(np.full((4, 10), np.nan))], "logits that are NaN or infinite"),
        ([], "answers to 0 of 1 batches"),
        ([answer(np.zeros((4, 10)))] * 2, "logits for 4 samples and 10 classes, 0 and 10 are needed"),
    ],
    ids=["too few samples", "another shape", "no base64", "nan", "none", "one too many"],
)
def test_an_answer_that_is_not_that_of_the_batch_is_refused(messages, said):
    with pytest.raises(UnavailableError) as caught:
        list(logits_of(messages, [4], device="pi"))
    (problem,) = caught.value.problems
    assert caught.value.exit_code == 4
    assert problem.message == f"the device's answer is not valid: {said}"
    assert (problem.at, problem.do) == ("device pi", "run it again; if it stays, the agent there is damaged")
