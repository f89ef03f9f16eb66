"""Public benchmarks: original files -> items, prompts, scores beside baselines, contamination."""
