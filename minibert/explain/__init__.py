"""Why this answer: plain data first, then a page, then the page with the model inside."""
