"""minibert beside the others, by turns."""
