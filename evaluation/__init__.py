"""How good a model is: likelihood, answers, pairs and first prompts, each with its count, interval
and baselines."""
