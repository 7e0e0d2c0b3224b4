import math


def total_steps(windows, batch_size, epochs):
    """An epoch has its full batches and perhaps a smaller last one."""
    return round(epochs * math.ceil(windows / batch_size))
