def settled(answers):
    """The place after the last answer that differs; 0 if no answer differs."""
    others = [k for k, answer in enumerate(answers) if answer != answers[-1]]
    return max(others, default=-1) + 1
