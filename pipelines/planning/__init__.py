"""`beam-influence plan`: what a run will read, compute and need, from a sample of its own files that is run for it."""
