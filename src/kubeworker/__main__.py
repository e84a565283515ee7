"""`python -m kubeworker` is the command `kubeworker`."""

from kubeworker.cli.app import main

if __name__ == "__main__":
    main()
