"""The report of operators that cannot be converted: all of them at once, with what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.utils
import pytest
from onnx import TensorProto, helper

from mlc.errors import ModelError, UnsupportedError
from mlc.frontend.operators import OWN, stock_table, supported
from mlc.frontend.stock import STOCK
from mlc.frontend.support import require_supported, unsupported
from tests import models

node = helper.make_node


@pytest.fixture(autouse=True)
def with_tvm(tvm: Any) -> None:
    """The table of conversions is TVM's."""


def model(*nodes: Any, domains: dict[str, int] | None = None, opset: int = 17) -> onnx.ModelProto:
    proto = models.model(nodes, {"x": [2, 3]}, ["y"], opset=opset)
    proto.opset_import.extend(helper.make_opsetid(*entry) for entry in (domains or {}).items())
    return proto


def lines(proto: onnx.ModelProto) -> list[str]:
    return [str(entry) for entry in unsupported(proto)]


def test_a_supported_model_has_no_report() -> None:
    assert unsupported(models.conv_net()) == []
    require_supported(models.conv_net())


def test_all_operators_are_listed_at_once_with_counts_and_nodes() -> None:
    proto = model(
        node("Relu", ["x"], ["a"]),
        *(node("NonsenseB", [f"b{k}"], [f"b{k + 1}"], f"second_{k}") for k in range(5)),
        node("NonsenseA", ["x"], ["y"]),
        node("Custom", ["x"], ["c"], "mine", domain="my.ops"),
        domains={"my.ops": 3},
    )
    found = unsupported(proto)
    assert [(e.domain, e.operator, e.opset, e.count) for e in found] == [
        ("", "NonsenseA", 17, 1), ("", "NonsenseB", 17, 5), ("my.ops", "Custom", 3, 1),
    ]  # fmt: skip
    assert [entry.nodes for entry in found] == [
        ("#6",), ("second_0", "second_1", "second_2"), ("mine",),
    ]  # fmt: skip
    assert lines(proto)[1].startswith(
        "ai.onnx::NonsenseB (opset 17), 5x: 'second_0', 'second_1', 'second_2', ... - "
    )
    with pytest.raises(UnsupportedError) as caught:
        require_supported(proto)
    message = caught.value.message
    assert message.splitlines()[0] == "3 operator(s) in 7 node(s) cannot be converted:"
    assert [line.strip() for line in message.splitlines()[1:]] == lines(proto)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("domain", "advice"),
    [
        ("", "--opset"),
        ("com.microsoft", "ORT_ENABLE_BASIC"),
        ("com.microsoft.nchwc", "before that step"),
        ("ai.onnx.ml", "outside the network"),
        ("ai.onnx.training", "evaluation mode"),
        ("my.ops", "custom domain"),
    ],
)
def test_each_domain_has_its_advice(domain: str, advice: str) -> None:
    proto = model(
        node("Nonsense", ["x"], ["y"], domain=domain), domains={domain: 1} if domain else {}
    )
    (line,) = lines(proto)
    assert line.startswith(
        f"{domain or 'ai.onnx'}::Nonsense (opset {1 if domain else 17}), 1x: '#0'"
    )
    assert advice in line


def test_both_spellings_of_the_default_domain_are_one() -> None:
    proto = model(node("A", ["x"], ["y"], "p"), node("A", ["x"], ["z"], "q", domain="ai.onnx"))
    (entry,) = unsupported(proto)
    assert (entry.domain, entry.count, entry.nodes) == ("", 2, ("p", "q"))
    del proto.opset_import[:]
    proto.opset_import.append(helper.make_opsetid("ai.onnx", 14))
    assert unsupported(proto)[0].opset == 14


def test_operators_in_branches_are_found() -> None:
    def branch(operator: str) -> onnx.GraphProto:
        output = helper.make_tensor_value_info("o", TensorProto.FLOAT, [2, 3])
        return helper.make_graph([node(operator, ["x"], ["o"], operator)], operator, [], [output])

    inner = branch("Innermost")
    then = helper.make_graph(
        [node("If", ["c"], ["o"], then_branch=inner, else_branch=branch("Relu"))], "then", [],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT, [2, 3])],
    )  # fmt: skip
    proto = model(node("If", ["c"], ["y"], then_branch=then, else_branch=branch("Other")))
    assert {"Innermost", "Other"} <= {entry.operator for entry in unsupported(proto)}


@pytest.mark.parametrize("opset", [1, 9, 17, 24])
def test_our_list_of_tvms_converters_is_tvms(opset: int) -> None:
    assert set(stock_table(opset)) == STOCK


def test_attention_of_onnx_is_not_taken_for_microsofts() -> None:
    """TVM looks operators up by name alone: bare, it would convert ONNX's as Microsoft's."""
    assert "Attention" in stock_table(23)
    assert not supported("", "Attention", 23)
    assert supported("com.microsoft", "Attention", 1)
    proto = model(node("Attention", ["x", "x", "x"], ["y"], "att"), opset=23)
    (line,) = lines(proto)
    assert line.startswith("ai.onnx::Attention (opset 23), 1x: 'att'")
    microsoft = model(
        node("Attention", ["x"], ["y"], domain="com.microsoft"), domains={"com.microsoft": 1}
    )
    assert unsupported(microsoft) == []


def test_names_of_microsoft_are_onnxs_only_where_we_convert_them() -> None:
    names = set(OWN["com.microsoft"])
    both = {"DequantizeLinear", "Gelu", "QLinearConv", "QuantizeLinear"}
    assert {name for name in names if supported("", name, 20)} == both
    assert all(supported("com.microsoft", name, 1) for name in names)
    assert not supported("com.microsoft", "Conv", 1)
    assert not supported("my.ops", "Relu", 1)


@pytest.mark.parametrize("name", ["RandomNormal", "Adam", "Bernoulli", "ATen"])
def test_training_and_random_operators_are_refused_though_tvm_lists_them(name: str) -> None:
    assert not supported("", name, 17)


def test_names_cannot_reach_the_terminal() -> None:
    proto = model(node("Bad\x1b[31m", ["x"], ["y"], "n\x1b]0;t\x07"))
    with pytest.raises(UnsupportedError) as caught:
        require_supported(proto)
    assert "\x1b" not in caught.value.message


def test_what_depends_on_values_is_cut_off_as_the_message_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: Any
) -> None:
    """A detector: the message's call makes a model of what comes before, which compiles."""
    nodes = [
        node("Relu", ["b"], ["boxes"]), node("Sigmoid", ["s"], ["scores"]),
        node("NonMaxSuppression", ["boxes", "scores", "count"], ["kept"], "nms"),
        node("Reshape", ["kept", "flat"], ["y"]),
    ]  # fmt: skip
    constants = {"count": np.array([3]), "flat": np.array([-1])}
    proto = models.model(nodes, {"b": [1, 7, 4], "s": [1, 2, 7]}, ["y"], constants, types={"y": 7})
    proto.graph.output[0].type.tensor_type.shape.dim.add().dim_param = "n"
    with pytest.raises(ModelError, match="depends on the input's values") as caught:
        compiled(proto)
    monkeypatch.chdir(tmp_path)
    models.save(proto, tmp_path, "model.onnx")
    call = str(caught.value.hint).partition("outputs: ")[2]
    assert call.startswith(
        "onnx.utils.extract_model('model.onnx', 'body.onnx', ['b', 's'], ['boxes',"
    )
    eval(call, {"onnx": onnx})
    made = compiled(onnx.load("body.onnx"))
    (outputs,) = made.run(made.feed())
    assert [array.shape for array in outputs.values()] == [(1, 7, 4), (1, 2, 7)]
