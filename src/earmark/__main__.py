"""Run the command line as `python -m earmark`."""

from earmark.cli.main import main

if __name__ == "__main__":
    main()
