"""What holds the weights near what they were. `[[penalties]]` are constructor calls."""

from treering.methods.penalties.ewc import EWC
from treering.methods.penalties.l2 import L2
from treering.methods.penalties.mas import MAS

KINDS = {"ewc": EWC, "l2": L2, "mas": MAS}
