"""Everything that is only about speed. Without it, answers differ at most by rounding."""
