"""What a run may see again. `[replay] memory = { kind = ... }` is a constructor call."""

from treering.methods.memories.balanced import Balanced
from treering.methods.memories.everything import Everything
from treering.methods.memories.reservoir import Reservoir

KINDS = {"everything": Everything, "reservoir": Reservoir, "balanced": Balanced}
