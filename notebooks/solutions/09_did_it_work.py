def selective(t):
    """The bins that are shown, weighted by how many answers are in each."""
    kept = score >= t
    return count[kept].sum() / count.sum(), (right * count)[kept].sum() / count[kept].sum()
