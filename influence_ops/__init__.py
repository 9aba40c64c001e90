"""The mathematics of influence on one worker: TensorFlow, NumPy and Arrow. Never imports Beam."""
