import math


def windows_needed(tokens, room, doc_stride):
    """One window, and one more for each step through the remaining tokens."""
    return 1 + max(0, math.ceil((tokens - room) / (room - doc_stride)))
