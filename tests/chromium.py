"""The browser that the tests drive: where it is, how it is started, and how long to wait for it."""

from jointvae.doctor import find_chromium

CHROMIUM = find_chromium()
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE = 120_000  # milliseconds; a busy machine is not a broken page
