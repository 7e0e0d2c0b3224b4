def one_head(x, n):
    """Use the same three maps, but only the rows of their weights that belong to this head."""
    one = slice(32 * n, 32 * (n + 1))
    q, k, v = (
        x @ linear.weight[one].T + linear.bias[one]
        for linear in (attention.query, attention.key, attention.value)
    )
    return (q @ k.T / math.sqrt(32)).softmax(-1) @ v
