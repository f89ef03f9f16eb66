"""Records: any line of a file brought to one of three shapes, and what makes two records the same."""
