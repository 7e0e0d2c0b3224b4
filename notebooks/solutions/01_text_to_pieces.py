def mark(context, first, last):
    """The offsets are places in the context itself, so we can cut it there."""
    offsets = tokenizer.encode(context).offsets.tolist()
    a, b = offsets[first][0], offsets[last][1]
    return f"{context[:a]}»{context[a:b]}«{context[b:]}"
