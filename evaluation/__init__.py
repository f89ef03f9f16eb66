"""How good a model is: metrics, each with its count, its interval and its baselines."""
