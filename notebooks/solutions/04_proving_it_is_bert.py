def first_wrong(states, reference, tolerance):
    """An error spreads to all later layers, so the first wrong state shows the faulty layer."""
    for k, (state, expected) in enumerate(zip(states, reference, strict=True)):
        if (state - expected).abs().max() > tolerance:
            return k
    return None
