"""`python -m minibert` is the command `minibert`."""

from .cli import main

if __name__ == "__main__":
    main()
