"""Records to token tensors: encode in several processes, pack into rows, write the folder."""
