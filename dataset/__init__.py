"""Text to tensors: record shapes, the mixture, the bundled samples, the tokenizer and what is stored for training."""
