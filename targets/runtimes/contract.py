"""The contract of a runtime, rule by rule, for the tests of those that ship and of your own.

    @pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
    def test_my_runtime(rule, tmp_path):
        rule(Subject("my_package.my_runtimes:mine", tmp_path))

A rule raises AssertionError with what was seen. The files that it needs are made in the subject's folder: a network of
two convolutions and a linear layer, float and int8 (Q/DQ, u8 activations, 7-bit weights per channel), with a dynamic and a static batch.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from kdpipe.foundation.errors import ConfigError, KdpipeError, VerificationError
from kdpipe.foundation.predictor import Float32Array
from kdpipe.targets.runtimes.runtime import Session, open_session

SHAPE = (1, 8, 8)
CLASSES = 5
STATIC_BATCH = 4

_CHANNELS = 8
_STEP = 1 / 32  # of int8 activations; hidden ones lie in [0, 8)
_WEIGHT_STEP = 1 / 64
_RUN_SECONDS = 0.2
_ONE_CORE = 1.25  # processor seconds in a second that one thread alone may use; the rest is what the clocks differ by


@dataclass(frozen=True)
class Subject:
    """A runtime on trial: its name as in a profile, and a folder for files."""

    runtime: str
    folder: Path

    def session(self, kind: str, threads: int = 1) -> Session:
        """The file `float`, `int8`, `float-static` or `int8-static` in the runtime."""
        return open_session(self.runtime, self.file(kind), threads=threads)

    def file(self, kind: str) -> Path:
        """That file; made where it is not there."""
        path = self.folder / f"{kind}.onnx"
        if not path.is_file():
            onnx.save(_network(STATIC_BATCH if kind.endswith("static") else "batch", quantized=kind.startswith("int8")), path)
        return path


def samples(count: int) -> Float32Array:
    """(count, 1, 8, 8) float32 in [0, 1], always the same."""
    return np.random.default_rng(5).random((count, *SHAPE), dtype=np.float32)


def it_gives_the_logits_of_a_float_file(subject: Subject) -> None:
    """As ONNX's reference evaluation does, up to float32's rounding."""
    _agrees(subject, "float", tolerance=1e-4)


def it_gives_the_logits_of_an_int8_file(subject: Subject) -> None:
    """As ONNX's reference evaluation does; a value at the edge of two int8 steps may round either way."""
    _agrees(subject, "int8", tolerance=4 * _STEP)


def it_takes_any_number_of_samples(subject: Subject) -> None:
    """One, an odd number, the static batch and more than it, whether the file's batch is dynamic or static."""
    for kind in ("float", "int8"):
        with subject.session(kind) as dynamic, subject.session(f"{kind}-static") as static:
            whole = dynamic(samples(11))
            for count in (1, 3, STATIC_BATCH, 11):
                for session in (dynamic, static):
                    logits = session(samples(11)[:count])
                    assert logits.shape == (count, CLASSES), f"{session.name}, {kind}: {count} samples gave {logits.shape}"
                    assert np.abs(logits - whole[:count]).max() < 4 * _STEP, f"{session.name}, {kind}: a sample's logits depend on how many others there are"


def it_takes_a_view_that_is_not_contiguous(subject: Subject) -> None:
    """Every second sample, without a copy made by the caller."""
    with subject.session("float") as session:
        _same(session(samples(8)[::2]), session(np.ascontiguousarray(samples(8)[::2])), "a strided view gives other logits than its copy")


def it_gives_the_same_bits_again(subject: Subject) -> None:
    """In one session, and in another one of the same file."""
    with subject.session("int8") as session, subject.session("int8") as other:
        first = session(samples(6)).copy()
        _same(session(samples(6)), first, "the same batch gave other bits the second time")
        _same(other(samples(6)), first, "the same batch gave other bits in another session")


def it_leaves_earlier_answers_alone(subject: Subject) -> None:
    """What was handed out is the caller's, and so is what was handed in."""
    with subject.session("float") as session:
        batch = samples(4)
        answer = session(batch)
        kept = answer.copy()
        session(1 - batch)
        _same(answer, kept, "an answer changed when the next batch was run")
        _same(batch, samples(4), "the batch that was handed in was changed")


def it_refuses_a_wrong_shape(subject: Subject) -> None:
    """A side, a dimension too few, no sample; the message says the right shape."""
    _refused(subject, [np.zeros(shape, np.float32) for shape in ((2, 1, 8, 7), (1, 8, 8), (0, *SHAPE))], "(n, 1, 8, 8)")


def it_refuses_a_wrong_type(subject: Subject) -> None:
    """float64 and uint8 are not converted silently, a list is no array."""
    _refused(subject, [np.zeros((1, *SHAPE)), np.zeros((1, *SHAPE), np.uint8), [[0.0]]], "float32")


def it_refuses_what_is_not_finite(subject: Subject) -> None:
    """NaN and infinity are an error upstream, not a sample."""
    _refused(subject, [np.concatenate([samples(1), np.full((1, *SHAPE), value, np.float32)]) for value in (np.nan, np.inf, -np.inf)], "NaN or infinite")


def one_thread_uses_one_core(subject: Subject) -> None:
    """With `threads=1` the process gets no more processor time than time passes; the least of three tries, for threads that others left may still spin."""
    batch = samples(64)
    tries = []
    with subject.session("float", threads=1) as session:
        session(batch)
        for _ in range(3):
            begin, used = time.perf_counter(), time.process_time()
            while time.perf_counter() - begin < _RUN_SECONDS:
                session(batch)
            tries.append((time.process_time() - used) / (time.perf_counter() - begin))
    cores = min(tries)
    assert cores < _ONE_CORE, f"{session.name} was given one thread and kept {cores:.2f} cores busy"


def it_answers_alike_with_two_threads(subject: Subject) -> None:
    """Sums may be taken in another order."""
    with subject.session("float", threads=1) as one, subject.session("float", threads=2) as two:
        assert np.abs(one(samples(16)) - two(samples(16))).max() < 1e-4, f"{one.name}: two threads give other logits than one"


def a_closed_session_does_not_answer(subject: Subject) -> None:
    """Closing twice is harmless; after it neither a call nor `explain` answers."""
    session = subject.session("int8")
    session.close()
    session.close()
    for use in (session, session.explain):
        said = str(_raised(RuntimeError, partial(use, samples(1))))
        assert "is closed" in said, f"the error of a closed session says {said}"


def a_with_statement_closes_it(subject: Subject) -> None:
    """Also when what stands in it fails, and the failure is not swallowed."""
    session = subject.session("int8")

    def failing() -> None:
        with session as entered:
            assert entered is session, "the with statement hands over something else than the session"
            raise KeyError("from within")

    _raised(KeyError, failing)
    _raised(RuntimeError, partial(session, samples(1)))


def a_file_that_is_damaged_is_refused(subject: Subject) -> None:
    """Empty, text, or cut off: VerificationError (exit code 5) that names the file and says what to do."""
    whole = subject.file("int8").read_bytes()
    path = subject.folder / "damaged.onnx"
    for content in (b"", b"not a model", whole[: len(whole) // 2]):
        path.write_bytes(content)
        _complains(VerificationError, lambda: open_session(subject.runtime, path), str(path))


def a_file_of_two_inputs_is_refused(subject: Subject) -> None:
    """Nothing is guessed: VerificationError."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("x", "y", "sum", "difference")]
    nodes = [helper.make_node("Add", ["x", "y"], ["sum"]), helper.make_node("Sub", ["x", "y"], ["difference"])]
    path = subject.folder / "two.onnx"
    onnx.save(helper.make_model(helper.make_graph(nodes, "two", value[:2], value[2:]), opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    _complains(VerificationError, lambda: open_session(subject.runtime, path), "2 inputs")


def it_explains_itself(subject: Subject) -> None:
    """Under its name; where it tells of nodes, each has a precision, and their shares of the time are a whole."""
    for kind in ("float", "int8"):
        with subject.session(kind) as session:
            explanation = session.explain(samples(8))
            assert explanation.runtime == session.name, f"explains {explanation.runtime}, is {session.name}"
            assert all(node.precision for node in explanation.nodes), "a node has no precision"
            shares = [node.share for node in explanation.nodes if node.share is not None]
            assert not shares or abs(sum(shares) - 1) < 0.01, f"the nodes' shares of the time are {sum(shares):.3f} in all"
            assert kind == "int8" or not explanation.int8_share, "a float file is said to run in int8"
            assert session(samples(1)).shape == (1, CLASSES), "the session does not answer after it explained itself"


Rule = Callable[[Subject], None]
RULES: Sequence[Rule] = (
    it_gives_the_logits_of_a_float_file,
    it_gives_the_logits_of_an_int8_file,
    it_takes_any_number_of_samples,
    it_takes_a_view_that_is_not_contiguous,
    it_gives_the_same_bits_again,
    it_leaves_earlier_answers_alone,
    it_refuses_a_wrong_shape,
    it_refuses_a_wrong_type,
    it_refuses_what_is_not_finite,
    one_thread_uses_one_core,
    it_answers_alike_with_two_threads,
    a_closed_session_does_not_answer,
    a_with_statement_closes_it,
    a_file_that_is_damaged_is_refused,
    a_file_of_two_inputs_is_refused,
    it_explains_itself,
)


def _agrees(subject: Subject, kind: str, tolerance: float) -> None:
    expected = ReferenceEvaluator(str(subject.file(kind))).run(None, {"input": samples(11)})[0]
    with subject.session(kind) as session:
        logits = session(samples(11))
        assert isinstance(session.name, str), "the session has no name"
        assert session.name, "the session has an empty name"
    assert logits.dtype == np.float32, f"{session.name} gave {logits.dtype}"
    assert logits.shape == (11, CLASSES), f"{session.name} gave {logits.dtype} {logits.shape}"
    difference = float(np.abs(logits - expected).max())
    assert difference < tolerance, f"{session.name} differs from ONNX's reference evaluation by {difference:.3g}, {tolerance:.3g} is allowed"


def _refused(subject: Subject, batches: Sequence[Any], words: str) -> None:
    for kind in ("int8", "float-static"):
        with subject.session(kind) as session:
            for batch in batches:
                _complains(ConfigError, partial(session, batch), words)


def _complains(kind: type[KdpipeError], action: Callable[[], object], words: str) -> None:
    error = _raised(kind, action)
    assert isinstance(error, KdpipeError)
    problem = error.problems[0]
    told = f"{problem.message} | {problem.at} | {problem.do}"
    assert all((problem.message, problem.at, problem.do)), f"what, where or what to do is missing: {told}"
    assert words in told, f"the error does not say {words!r}: {told}"


def _raised(kind: type[Exception], action: Callable[[], object]) -> Exception:
    try:
        action()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__} was raised")


def _same(got: Float32Array, expected: Float32Array, otherwise: str) -> None:
    assert np.array_equal(got, expected), otherwise


def _network(batch: int | str, *, quantized: bool) -> onnx.ModelProto:
    """conv-relu, conv-relu, pool, linear on weights that are multiples of `_WEIGHT_STEP`, so that both files hold the same ones."""
    generator = np.random.default_rng(7)
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []

    def constant(name: str, value: Any) -> str:
        constants.append(numpy_helper.from_array(value, name))
        return name

    def weight(name: str, shape: tuple[int, ...]) -> str:
        steps = generator.integers(-63, 64, shape).astype(np.int8)
        if not quantized:
            return constant(name, steps.astype(np.float32) * _WEIGHT_STEP * 0.25)
        scale = constant(f"{name}.scale", np.full(shape[0], _WEIGHT_STEP * 0.25, np.float32))
        zero = constant(f"{name}.zero", np.zeros(shape[0], np.int8))
        nodes.append(helper.make_node("DequantizeLinear", [constant(f"{name}.int8", steps), scale, zero], [name], name=f"{name}.dequantize", axis=0))
        return name

    def activation(source: str) -> str:
        if not quantized:
            return source
        pair = [constant(f"{source}.scale", np.float32(_STEP)), constant(f"{source}.zero", np.uint8(0))]
        nodes.append(helper.make_node("QuantizeLinear", [source, *pair], [f"{source}.q"], name=f"{source}.quantize"))
        nodes.append(helper.make_node("DequantizeLinear", [f"{source}.q", *pair], [f"{source}.dq"], name=f"{source}.dequantize"))
        return f"{source}.dq"

    value = activation("input")
    for name, channels in (("conv1", SHAPE[0]), ("conv2", _CHANNELS)):
        inputs = [value, weight(f"{name}.weight", (_CHANNELS, channels, 3, 3))]
        nodes.append(helper.make_node("Conv", inputs, [name], name=name, kernel_shape=[3, 3], pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [name], [f"{name}.relu"], name=f"{name}.relu"))
        value = activation(f"{name}.relu")
    nodes.append(helper.make_node("GlobalAveragePool", [value], ["pooled"], name="pool"))
    nodes.append(helper.make_node("Flatten", [activation("pooled")], ["flat"], name="flatten"))
    linear = weight("linear.weight", (CLASSES, _CHANNELS))
    nodes.append(helper.make_node("Gemm", ["flat", linear], ["logits"], name="linear", transB=1))
    graph = helper.make_graph(
        nodes,
        "contract",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, *SHAPE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, CLASSES])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
