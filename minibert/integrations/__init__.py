"""Adapters for other people's programs. Each module needs the package whose name it has."""
