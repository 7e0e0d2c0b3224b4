def without_positions(input_ids, segments):
    """Word and segment alone, brought to the same scale as before."""
    return normalized(W[input_ids] + G[segments], norm.weight, norm.bias)
