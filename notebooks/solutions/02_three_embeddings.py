def without_positions(input_ids, segments):
    """Add only word and segment, then normalise as before."""
    return normalized(W[input_ids] + G[segments], norm.weight, norm.bias)
