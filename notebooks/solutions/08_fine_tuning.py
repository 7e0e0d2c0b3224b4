import math


def total_steps(windows, batch_size, epochs):
    """Whole batches and the smaller last one make an epoch; of those, so many."""
    return round(epochs * math.ceil(windows / batch_size))
