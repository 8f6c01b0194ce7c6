"""Parameters of a prepared graph that simulates integers, made fit to be trained: weights as codes, and scales."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.fx import GraphModule

from sizewise.graph.folding import tensor_uses
from sizewise.graph.observers import ActivationObserver, WeightObserver, mode

__all__ = ["learning"]


@contextmanager
def learning(prepared: GraphModule) -> Iterator[None]:
    """Within it, the graph simulates integers, and its weights as codes and all scales are parameters; after it weights are rounded.

    A weight is given in units of its channel's scale, times a power of two. Steps of Adam, which are as long as the rate, are then
    the same share of every channel's largest weight: folded normalizations leave channels that differ by orders of magnitude, and
    with one rate for the weights themselves some never reach the next code while others jump over several. Gradients pass
    through rounding as if it were not there, and end where codes do. Of scales, logarithms are parameters, for the same reason;
    zero points of activations stay.

    A weight that several layers share is left as it is, since each of them may have a scale of its own.

    Args:
        prepared: with a range for every activation; changed in place.

    Source: Jacob et al., CVPR 2018, for the simulation; Bengio et al., Estimating or Propagating Gradients, 2013, for gradients;
    Esser et al., Learned Step Size Quantization, ICLR 2020, for scales. Deviation: codes and logarithms as parameters.
    """
    owned = _owned(prepared)
    found = [module for module in prepared.modules() if isinstance(module, ActivationObserver)]
    with mode(prepared, "simulate"):
        for observer, weight in owned:
            weight.data = observer.learn(weight)
        for module in found:
            module.learn()
        try:
            yield
        finally:
            for observer, weight in owned:
                weight.data = observer.settle(weight)
            for module in found:
                module.settle()


def _owned(prepared: GraphModule) -> list[tuple[WeightObserver, nn.Parameter]]:
    """Observers of weights with what they look at, where nobody else does."""
    uses, parameters, found = tensor_uses(prepared), dict(prepared.named_parameters(remove_duplicate=False)), []
    for node in prepared.graph.nodes:
        module = prepared.get_submodule(str(node.target)) if node.op == "call_module" else None
        held = str(node.all_input_nodes[0].target) if isinstance(module, WeightObserver) else ""
        parameter = parameters.get(held)
        if isinstance(module, WeightObserver) and parameter is not None and uses[held] == 1:
            found.append((module, parameter))
    return found
