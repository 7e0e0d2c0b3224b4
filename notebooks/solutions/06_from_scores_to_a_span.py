def one_pass(start, end):
    """The best partner of an end is the best start up to it: one number to remember."""
    best_start, best, found = 0, float("-inf"), (0, 0)
    for j in range(len(start)):
        if start[j] > start[best_start]:
            best_start = j
        if start[best_start] + end[j] > best:
            best, found = start[best_start] + end[j], (best_start, j)
    return found
