def settled(answers):
    """One after the last that differs; 0 where none does."""
    others = [k for k, answer in enumerate(answers) if answer != answers[-1]]
    return max(others, default=-1) + 1
