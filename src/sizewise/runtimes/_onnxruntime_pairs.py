"""Whether ONNX Runtime's integer kernels on this machine add the products of two neighbours in 16 bits.

Those for x86 processors with AVX2 or AVX-512 but without VNNI do; see `arith/pairs.py`. What a processor is called tells little of which
kernels the runtime has for it, so they are asked.
"""

from functools import cache
from typing import Any

import numpy as np

__all__ = ["adds_in_pairs"]

_LARGEST = 255, 127  # of an activation and of a weight
_SHAPE = 4, 16, 16  # rows, summands and columns: no kernel for single rows or ragged ends


@cache
def adds_in_pairs(ort: Any) -> bool:
    """Whether a sum of largest products comes out too small.

    Args:
        ort: the onnxruntime module.
    """
    from onnx import TensorProto
    from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
    from onnx.numpy_helper import from_array

    (activation, weight), (rows, summands, columns) = _LARGEST, _SHAPE
    given = make_tensor_value_info("x", TensorProto.UINT8, (rows, summands))
    sums = make_tensor_value_info("sums", TensorProto.INT32, (rows, columns))
    weights = from_array(np.full((summands, columns), weight, np.int8), "weights")
    graph = make_graph([make_node("MatMulInteger", ["x", "weights"], ["sums"])], "pairs", [given], [sums], [weights])
    model = make_model(graph, opset_imports=[make_opsetid("", 17)], ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": np.full((rows, summands), activation, np.uint8)})
    return int(found[0, 0]) < summands * activation * weight
