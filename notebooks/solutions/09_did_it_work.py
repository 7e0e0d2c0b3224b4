def selective(t):
    """Take the groups that are shown, and weight each by its number of answers."""
    kept = score >= t
    return count[kept].sum() / count.sum(), (right * count)[kept].sum() / count[kept].sum()
