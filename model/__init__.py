"""Tensors -> logits: the network, its weight files, devices; the tokenizer that ships lies here."""
