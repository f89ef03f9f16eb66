"""Records to token tensors: encode them, in several processes, pack them into rows, store them."""
