"""`--curvature auto`: which curvature, damping, passes and weights a run has, chosen before it by rules that say why."""
