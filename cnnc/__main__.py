"""The `cnnc` command, also as `python -m cnnc`."""


def main() -> None:
    """Runs the command. Ctrl-C ends it quietly, however early it comes."""
    try:
        from cnnc.cli import main as command  # which takes most of the time until `--help` answers

        command()
    except KeyboardInterrupt:
        raise SystemExit(130) from None  # `cnnc.cli.app.INTERRUPTED`, which may not be there yet


if __name__ == "__main__":
    main()
