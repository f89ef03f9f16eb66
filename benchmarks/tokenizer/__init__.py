"""What tokenizer_speed.py compares: the text, the arms, one measurement each, and the tables."""
