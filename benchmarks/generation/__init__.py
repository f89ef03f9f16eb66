"""What generation_speed.py compares: the programs, many requests at once, and equal answers."""
