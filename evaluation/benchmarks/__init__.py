"""Public benchmarks: original files -> items, prompts, scores beside their baselines, contamination."""
