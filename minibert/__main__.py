"""`python -m minibert` is the command `minibert`."""

from .cli.commands import main

if __name__ == "__main__":
    main()
