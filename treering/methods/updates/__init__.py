"""How a batch is learned from. `[update]` is a constructor call; `inner` is another update."""

from treering.methods.updates.average import Average
from treering.methods.updates.coso import CoSO
from treering.methods.updates.descent import Descent
from treering.methods.updates.per_sample import PerSample
from treering.methods.updates.reptile import Reptile

KINDS = {
    "average": Average,
    "coso": CoSO,
    "descent": Descent,
    "per_sample": PerSample,
    "reptile": Reptile,
}
