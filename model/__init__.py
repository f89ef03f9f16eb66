"""Tensors -> logits: the network, its weight files and devices; the tokenizer that ships lies here too."""
