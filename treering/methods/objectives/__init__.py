"""What is minimised. Next-token prediction is the only one so far."""

from treering.methods.objectives.next_token import NextToken

__all__ = ["NextToken"]
