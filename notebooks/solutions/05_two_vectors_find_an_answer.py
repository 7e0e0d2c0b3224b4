def joint_probability(loss):
    """loss = -(log p + log q) / 2, so p * q = exp(-2 * loss)."""
    return math.exp(-2 * loss)
