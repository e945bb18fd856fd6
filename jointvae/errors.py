"""The one exception whose message is meant for the user."""


class JointVAEError(ValueError):
    """Bad input or a state that the user can mend; the message is one clear sentence.

    The command line prints it without a traceback and exits with status 2.
    """
