"""Why this answer: plain data first, then a page, then the same page live."""
