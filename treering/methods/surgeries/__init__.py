"""What a model becomes before its first step. Each table of `[[surgeries]]` is a constructor call;
they are done in order."""

from treering.methods.surgeries.context import Context
from treering.methods.surgeries.depth import Depth
from treering.methods.surgeries.vocabulary import Vocabulary

KINDS = {"context": Context, "depth": Depth, "vocabulary": Vocabulary}
