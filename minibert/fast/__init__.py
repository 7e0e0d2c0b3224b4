"""What is about speed and not about BERT: without it, the same answers, later."""
