"""minibert compared with other libraries and engines, in alternating turns."""
