"""Everything that is only about speed. Without it the answers are the same, but take longer."""
