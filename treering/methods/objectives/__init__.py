"""What is minimised: next-token prediction, and beside it a teacher's or an old self's."""

from treering.methods.objectives.next_token import NextToken

__all__ = ["NextToken"]
