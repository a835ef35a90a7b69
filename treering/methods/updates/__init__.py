"""How a batch is learned from. `[update]` is a constructor call; `inner` is another update."""

from treering.methods.updates.agem import AGEM
from treering.methods.updates.average import Average
from treering.methods.updates.coso import CoSO
from treering.methods.updates.descent import Descent
from treering.methods.updates.gem import GEM
from treering.methods.updates.latest import Latest
from treering.methods.updates.outer import Outer
from treering.methods.updates.per_sample import PerSample
from treering.methods.updates.reptile import Reptile

KINDS = {
    "agem": AGEM,
    "average": Average,
    "coso": CoSO,
    "descent": Descent,
    "gem": GEM,
    "latest": Latest,
    "outer": Outer,
    "per_sample": PerSample,
    "reptile": Reptile,
}
