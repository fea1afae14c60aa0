"""The first grain: single weights, masked where they are small or in the way of a pattern."""
