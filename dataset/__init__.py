"""Text to tensors: record shapes, the mixture, bundled samples, the tokenizer, stored tensors."""
