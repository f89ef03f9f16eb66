"""What the training benchmarks share: both arms, their text, their clocks and their scores."""
