"""What a preparation says of the layers that it left in float."""

from torch import nn

from sizewise.data.static_int8 import Tried, Wish, stay
from sizewise.graph.prepared import Prepared
from sizewise.types import Skip

ASKED, NO_KERNEL = "asked to stay float", "softmax has no integer kernel in this scheme"


def test_spared_layers_and_their_parts_say_so_and_others_keep_their_reason() -> None:
    left = [Skip(what="stem", reason=ASKED), Skip(what="block", reason=ASKED), Skip(what="block.pad", reason=ASKED)]
    left += [Skip(what="blocks.0", reason=NO_KERNEL)]
    prepared = Prepared(nn.Identity(), touched=(), left=tuple(left))
    tried = Tried(prepared, 0.0, Wish(("mse",), even=False, nearest=False, skip=("stem", "block")), "mse", even=False)
    said = {skip.what: skip.reason for skip in stay(tried, ["stem"], "latency")}
    assert said == {
        "stem": ASKED,
        "block": "spared: its integers change the outputs most, and the limit allows it",
        "block.pad": "part of block, which was spared",
        "blocks.0": NO_KERNEL,
    }
