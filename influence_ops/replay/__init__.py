"""A training run, repeated step by step and gone through backward: the derivative of what it ends in by every example's weight."""
