def one_pass(start, end):
    """The best start for an end is the best one up to it, so we only remember this start."""
    best_start, best, pair = 0, float("-inf"), (0, 0)
    for j in range(len(start)):
        if start[j] > start[best_start]:
            best_start = j
        if start[best_start] + end[j] > best:
            best, pair = start[best_start] + end[j], (best_start, j)
    return pair
