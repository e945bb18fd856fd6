"""The one exception whose message is meant for the user."""

LONGEST = 900  # characters of a message


class JointVAEError(ValueError):
    """Bad input or a state that the user can mend; the message is one clear sentence.

    The command line prints it without a traceback and exits with status 2. A message may quote the input: what can't be
    printed in it is escaped, and a very long one loses its middle.
    """

    def __init__(self, message: str) -> None:
        line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)
        super().__init__(line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} … {line[-LONGEST // 2 + 3 :]}")
