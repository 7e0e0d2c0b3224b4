"""The server of `minibert serve`: the live page, and question answering over HTTP."""
