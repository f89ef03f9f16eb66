"""Tensors -> logits: the network, generation and export; the shipped tokenizer's files lie here too."""
