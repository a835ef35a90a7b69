"""Rates as pure functions of the step. `[schedule]` is a constructor call; `span` joins them."""

from treering.methods.schedules.constant import Constant
from treering.methods.schedules.cosine import Cosine
from treering.methods.schedules.linear import Linear

KINDS = {"constant": Constant, "cosine": Cosine, "linear": Linear}
