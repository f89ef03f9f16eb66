"""Records: any line of a file brought to one of three shapes; what makes two records the same."""
