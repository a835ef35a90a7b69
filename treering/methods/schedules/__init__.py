"""Rates as pure functions of the step. `[schedule]` is a constructor call; `span` joins them."""

from treering.methods.schedules.constant import Constant
from treering.methods.schedules.cosine import Cosine
from treering.methods.schedules.infinite import Infinite
from treering.methods.schedules.linear import Linear
from treering.methods.schedules.wsd import WSD

KINDS = {
    "constant": Constant,
    "cosine": Cosine,
    "infinite": Infinite,
    "linear": Linear,
    "wsd": WSD,
}
