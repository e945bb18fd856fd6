"""The encoder and the decoder of a model as ONNX files, for other programs.

The graph is written layer by layer: torch's exporter would bring a package more, and names of its own.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from torch import nn

from jointvae.model import FEATURES, JointVAE

FLOAT = 1  # onnx.TensorProto.FLOAT
OPSET = 17
IR_VERSION = 8  # runtimes since 2022 read both


def onnx_bytes(model: JointVAE, part: str) -> bytes:
    """The encoder or the decoder as an ONNX file, for batches of any size.

    The encoder takes `x` (batch, channels, side, side) with values in [0, 1] and gives `mu` and `logvar` (batch, D) and
    `probs_1`, `probs_2`, … (batch, n_i), the probabilities of each discrete unit. The decoder takes `latent` (batch,
    D + the sum of n_i) and gives `image`, the mean image.
    """
    from onnx import helper

    graph = Graph()
    image = [model.image.channels, model.image.size, model.image.size]
    if part == "encoder":
        last = graph.chain([*model.encoder.modules(), model.head], "x")
        spec, inputs = model.spec, {"x": image}
        outputs = ({"mu": [spec.z], "logvar": [spec.z]} if spec.z else {}) | {
            f"probs_{i + 1}": [n] for i, n in enumerate(spec.c)
        }
        graph.split(last, outputs)
    else:
        last = graph.chain(model.decoder.modules(), "latent")
        graph.node("Sigmoid", [last], output="image")
        inputs, outputs = {"latent": [model.spec.size]}, {"image": image}
    given, made = (
        [helper.make_tensor_value_info(name, FLOAT, ["batch", *shape]) for name, shape in values.items()]
        for values in (inputs, outputs)
    )
    whole = helper.make_model(
        helper.make_graph(graph.nodes, f"jointvae-{part}", given, made, graph.constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="jointvae",
    )
    return whole.SerializeToString(deterministic=True)


class Graph:
    """Nodes and constants of an ONNX graph in the making."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, values: np.ndarray) -> str:
        """Add an array and return its name."""
        from onnx import numpy_helper

        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def node(self, kind: str, inputs: Sequence[str], output: str | None = None, **attributes: Any) -> str:
        """Add an operation and return the name of its output."""
        from onnx import helper

        name = output or f"value_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def chain(self, modules: Iterable[nn.Module], value: str) -> str:
        """Add the layers of the model in order and return the name of what comes out; containers add nothing."""
        for layer in modules:
            if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                assert layer.bias is not None, "every layer of the model has biases"
                weights = [self.constant(t.detach().cpu().numpy()) for t in (layer.weight, layer.bias)]
            if isinstance(layer, nn.Linear):
                value = self.node("Gemm", [value, *weights], transB=1)
            elif isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                kind = "ConvTranspose" if isinstance(layer, nn.ConvTranspose2d) else "Conv"
                value = self.node(kind, [value, *weights], kernel_shape=[4, 4], strides=[2, 2], pads=[1, 1, 1, 1])
            elif isinstance(layer, nn.ReLU):
                value = self.node("Relu", [value])
            elif isinstance(layer, nn.Flatten):
                value = self.node("Flatten", [value])
            elif isinstance(layer, nn.Unflatten):
                value = self.node("Reshape", [value, self.constant(np.array([-1, *FEATURES]))])
        return value

    def split(self, value: str, outputs: dict[str, list[int]]) -> None:
        """Cut a vector into the named outputs; the softmax is taken of those that are probabilities."""
        start = 0
        for name, (size,) in outputs.items():
            ends = [self.constant(np.array([number])) for number in (start, start + size, 1)]
            soft = name.startswith("probs")
            cut = self.node("Slice", [value, *ends], output=None if soft else name)
            if soft:
                self.node("Softmax", [cut], output=name, axis=-1)
            start += size
