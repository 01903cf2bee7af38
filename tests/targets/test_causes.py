"""Each cause from made-up observations: when it is told, with which figures, in which order. `runtimes/test_explained.py` has the real graphs."""

import pytest

from kdpipe.targets.causes import Evidence, findings
from kdpipe.targets.explanation import concluded
from kdpipe.targets.measurements import NodePrecision
from kdpipe.targets.observed import Observed
from kdpipe.targets.qdq_reading import Reason
from kdpipe.targets.timing import Times

FAST = frozenset({"x86-64", "avx2", "vnni"})
QUICK = Times(alone=1.0, within_batch=0.9)


def node(name, operator="Conv", precision="int8", share=0.25, microseconds=25.0, read=0, written=0):
    return NodePrecision(name=name, operator=operator, precision=precision, share=share, microseconds=microseconds, bytes_read=read, bytes_written=written)


def seen(*nodes, **parts):
    return Observed(nodes=nodes, **{"compute": frozenset(it.name for it in nodes if it.operator == "Conv"), **parts})


def told(observed, times=QUICK, sets=FAST, **more):
    return findings(Evidence(observed, times, sets, copies=lambda size: 1e10, **more))


def test_a_file_with_no_cause_has_no_finding():
    assert told(seen(node("a"), node("b"))) == ()


@pytest.mark.parametrize(
    ("cause", "said"),
    [
        ("residual-add", "a sum that is not quantized on all sides"),
        ("split-activation", "zero point is above the lowest value"),
        ("per-channel-activation", "quantized per channel"),
        ("float-operator", "without an integer kernel"),
        ("float-output", "the result is not quantized"),
        ("weights-only", "only weights are quantized"),
    ],
)
def test_what_runs_in_float_is_told_by_the_reason_that_the_file_gives(cause, said):
    nodes = node("a"), node("b", precision="float32"), node("q", "QuantizeLinear", "int8"), node("c")
    (finding,) = told(seen(*nodes, reasons={"b": Reason(cause, "origin"), "q": Reason(cause, "origin")}, leftover=("q",)))
    assert finding.cause == cause
    assert said in finding.text
    assert (
        "(at origin): 1 of 3 convolutions and linear layers run in float: b; 1 other nodes that a fused layer does not have: q (50 % of the time)"
        in finding.text
    )
    assert (finding.nodes, finding.share) == (("b", "q"), 0.5)
    assert finding.remedy


def test_what_runs_in_float_without_a_reason_in_the_file_is_the_runtime_s_doing():
    (finding,) = told(seen(node("a"), node("b", precision="float32")))
    assert (finding.cause, finding.nodes) == ("run-in-float", ("b",))
    assert "this runtime has no integer kernel for their types and shapes" in finding.text


def test_quantizers_that_nothing_explains_are_told_as_such():
    (finding,) = told(seen(node("a"), node("q", "QuantizeLinear"), leftover=("q",)))
    assert (finding.cause, finding.nodes, finding.share) == ("leftover-quantizers", ("q",), 0.25)


def test_a_float_file_is_not_quantized():
    (finding,) = told(seen(node("a", precision="float32"), reasons={"a": Reason("not-quantized", "a")}))
    assert finding.text == "these layers have no Q/DQ in the file: 1 of 1 convolutions and linear layers run in float: a (25 % of the time)"


@pytest.mark.parametrize(("share", "says"), [(0.2, True), (0.02, False)])
def test_layout_changes_are_a_cause_from_three_per_cent_of_the_time_on(share, says):
    found = told(seen(node("a"), node("t", "Transpose", share=share), layout=("t",)))
    assert [it.cause for it in found] == (["layout"] if says else [])
    assert not says or found[0].text == "1 nodes only change the memory layout: t (20 % of the time)"


@pytest.mark.parametrize(("fixed", "shape_share", "share"), [(0.6, None, 0.4), (0.95, None, None), (0.95, 0.3, 0.3), (None, None, None)])
def test_free_sides_are_a_cause_by_what_fixing_them_gains_and_by_the_nodes_that_compute_shapes(fixed, shape_share, share):
    nodes = (node("a"),) + ((node("s", "Shape", "int64", share=shape_share),) if shape_share else ())
    found = told(seen(*nodes, shapes=("s",) if shape_share else ()), Times(alone=1.0, fixed=fixed))
    assert [it.cause for it in found] == (["dynamic-shape"] if share else [])
    assert not found or found[0].share == pytest.approx(share)
    assert not found or f"takes 1.000 ms with free sides and {fixed:.3f} ms with all sides fixed" in found[0].text


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        ({"x86-64", "avx2"}, "no int8 dot product (VNNI)"),
        ({"aarch64", "asimd"}, "no int8 dot product (asimddp)"),
        ({"aarch64", "asimd", "asimddp"}, None),
        (set(), None),
    ],
    ids=["avx2", "cortex-a72", "cortex-a76", "unknown"],
)
def test_a_missing_dot_product_is_told_for_the_layers_that_multiply_in_int8(sets, said):
    found = told(seen(node("a"), node("b"), node("c", precision="float32"), reasons={}), sets=frozenset(sets))
    lacking = [it for it in found if it.cause == "missing-instruction"]
    assert len(lacking) == (said is not None)
    if said:
        assert said in lacking[0].text
        assert (lacking[0].nodes, lacking[0].share) == (("a", "b"), 0.5)
    assert not any(it.cause == "missing-instruction" for it in told(seen(node("c", precision="float32")), sets=frozenset(sets)))


@pytest.mark.parametrize(
    ("within", "said"), [(0.2, "most of a single inference (80 %)"), (0.65, "much of a single inference (35 %)"), (0.8, None), (None, None), (1.2, None)]
)
def test_small_layers_are_a_cause_from_a_third_of_the_time_on(within, said):
    found = told(seen(node("a", microseconds=5.0), node("b")), Times(alone=1.0, within_batch=within))
    assert [it.cause for it in found] == (["small-layers"] if said else [])
    if said:
        assert said in found[0].text
        assert "1 of 2 layers take less than 10 µs: a" in found[0].text
        assert (found[0].nodes, found[0].share) == (("a",), pytest.approx(1 - within))


@pytest.mark.parametrize(("microseconds", "says"), [(200.0, True), (400.0, False)])
def test_a_node_that_moves_bytes_as_fast_as_a_copy_waits_for_memory(microseconds, says):
    """1 MB in 200 µs is 5 GB/s, half of the copy's 10 GB/s."""
    found = told(seen(node("a"), node("pool", "MaxPool", microseconds=microseconds, read=500_000, written=500_000)))
    assert [it.cause for it in found] == (["memory-bound"] if says else [])
    assert not says or "pool move 1.00 MB in 0.200 ms, 50 % or more of a plain copy's rate" in found[0].text


def test_a_layer_that_is_no_faster_than_its_float_self_is_told_with_both_times():
    against = seen(node("a", precision="float32", microseconds=26.0), node("b.out", precision="float32", microseconds=60.0), originals={"b.out": ("b",)})
    (finding,) = told(seen(node("a"), node("b")), against=against)
    assert (finding.cause, finding.nodes) == ("slow-kernel", ("a",))
    assert "1 layers run in int8 and are not 1.3 times as fast as in float: a 25.0 µs against 26.0 in float" in finding.text


def test_more_threads_than_cores_are_told_with_what_fewer_would_take():
    found = told(seen(node("a")), Times(alone=2.0, threads=8, cores=2, one_thread=3.0, all_cores=1.0))
    (finding,) = found
    assert (finding.cause, finding.share) == ("threads", 0.5)
    assert finding.text == "8 threads on 2 cores that this process may use: one inference takes 2.000 ms, with 2 threads 1.000 ms"
    assert finding.remedy.startswith("set at most 2 threads")


@pytest.mark.parametrize(
    ("times", "share", "said"),
    [
        (Times(alone=1.0, threads=2, cores=2, one_thread=0.8), 0.2, "2 threads make int8 0.80 times as fast as one (0.800 ms with one, 1.000 ms with 2)"),
        (Times(alone=1.0, threads=2, cores=2, one_thread=1.2, float_alone=1.0, float_one_thread=1.8), 1 / 3, "they make float 1.80 times as fast"),
        (Times(alone=1.0, threads=2, cores=2, one_thread=1.8), None, None),
        (Times(alone=1.0, threads=2, cores=2, one_thread=1.7, float_alone=1.0, float_one_thread=1.8), None, None),
    ],
    ids=["slower", "float gains more", "it pays", "it pays alike"],
)
def test_threads_that_do_not_pay_are_told(times, share, said):
    found = told(seen(node("a")), times)
    assert [it.cause for it in found] == (["threads"] if said else [])
    assert not said or said in found[0].text
    assert not said or found[0].share == pytest.approx(share)


@pytest.mark.parametrize(("first", "says"), [(30.0, True), (3.0, False), (None, False)])
def test_a_first_inference_that_takes_ten_times_as_long_is_told_last(first, says):
    found = told(seen(node("a"), node("t", "Transpose"), layout=("t",)), Times(alone=1.0, first=first))
    assert [it.cause for it in found] == (["layout", "first-run"] if says else ["layout"])
    assert not says or (found[-1].share is None and found[-1].text.startswith("the first inference takes 30.000 ms, later ones 1.000 ms"))


def test_what_an_accelerator_left_to_the_cpu_is_told():
    (finding,) = told(seen(node("part", "Subgraph", "not told"), node("soft", "Softmax", "float32"), fell_back=("soft",)))
    assert (finding.cause, finding.nodes, finding.share) == ("fell-back", ("soft",), 0.25)


def test_the_weightiest_cause_comes_first_and_what_is_below_one_per_cent_is_not_told():
    nodes = node("a", share=0.5), node("b", precision="float32", share=0.3), node("t", "Transpose", share=0.19), node("c", precision="float32", share=0.005)
    reasons = {"b": Reason("residual-add", "b"), "c": Reason("float-operator", "c")}
    assert [it.cause for it in told(seen(*nodes, reasons=reasons, layout=("t",)))] == ["residual-add", "layout"]


def test_the_share_counts_convolutions_and_linear_layers_only():
    nodes = node("a"), node("b", precision="float32"), node("pool", "MaxPool")
    explanation = concluded("any", Evidence(seen(*nodes), QUICK, FAST))
    assert (explanation.int8_share, explanation.milliseconds, explanation.ratio_to_float) == (0.5, 1.0, None)
    assert concluded("any", Evidence(seen(node("pool", "MaxPool")), Times(alone=1.0, float_alone=2.0), FAST)).ratio_to_float == 0.5
