"""The `lora-studio` command: `serve`, the default, opens the page; every other command comes from `studio.cli`."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from core.errors import StudioError
from studio.cli import app, run
from studio.commands.terminal import AsJson, Workspace, emit, say

if TYPE_CHECKING:
    from studio.workspace import Workspace as Place

HOST, PORT = "127.0.0.1", 7860
START_TIMEOUT_S = 60.0


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; any but this machine's own needs a login.")] = HOST,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port, or the next free one.")] = PORT,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")] = True,
    detach: Annotated[bool, typer.Option("--detach", help="Run in the background until `lora-studio stop`.")] = False,
    allow_host: Annotated[list[str] | None, typer.Option(help="Another name the studio is called by.")] = None,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Open the studio in the browser (the default command)."""
    from studio.workspace import Workspace as Place

    place = Place.open(workspace)
    if detach:
        url = _detached(place, host, port, allow_host or [])
        emit(as_json, {"url": url}, f"The studio is open at {url}\nEnd it with: lora-studio stop")
        _open_browser(url, browser)
    else:
        _serve(place, host, port, browser, allow_host or [], as_json)


def _serve(place: Place, host: str, port: int, browser: bool, hosts: Sequence[str], as_json: bool) -> None:
    """Serve the page until a signal: Ctrl-C saves the jobs, a closed terminal or `stop` leaves them running."""
    from studio.server import ServerClaim

    claim = ServerClaim(place)
    claim.take()
    say("Opening the studio ...")
    from studio.log import log_to_stderr
    from studio.service import Studio
    from ui.server import PageServer, bind, keep_scheduler, make_app

    log_to_stderr(logging.WARNING)
    studio, leaving = Studio(place.root), threading.Event()
    try:
        studio.start()
        address = bind(host, port)
        if address.port != port:
            say(f"Port {port} is taken, so the studio uses {address.port}.")

        def announce() -> None:
            claim.announce(address.login_url)
            emit(as_json, {"url": address.login_url}, f"The studio is open at {address.login_url}  (Ctrl-C ends it)")
            _open_browser(address.login_url, browser)

        keep_scheduler(place, leaving)
        server = PageServer(make_app(studio, address, hosts), announce)
        server.run(sockets=list(address.sockets))
    finally:
        leaving.set()
        studio.close()
        claim.give_up()
    if server.ended_by == signal.SIGINT:
        _leave(place)


def _leave(place: Place) -> None:
    """After Ctrl-C: every job saves and waits for the next start; a second Ctrl-C does not wait for that."""
    from studio.shutdown import kill_all, pause_all

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a script's background job inherits a deaf one
    say("Saving running jobs; the next start goes on with them. Ctrl-C again ends them at once.")
    try:
        count = pause_all(place)
    except KeyboardInterrupt:
        kill_all(place)
        say("Ended. Jobs go on from their last checkpoint at the next start.")
        return
    say(f"{count} job(s) saved. Goodbye." if count else "Goodbye.")


def _detached(place: Place, host: str, port: int, hosts: Sequence[str]) -> str:
    """Start the studio in the background; returns its address once it answers."""
    from studio.launch import start_detached
    from studio.server import running_server

    known = running_server(place)
    if known is not None:
        return known.url
    names = [part for name in hosts for part in ("--allow-host", name)]
    arguments = ["serve", "--no-browser", "--workspace", str(place.root), "--host", host, "--port", str(port), *names]
    log = place.root / "server.log"
    process = start_detached("ui.main", arguments, log, place.root)
    deadline = time.monotonic() + START_TIMEOUT_S
    while (server := running_server(place)) is None:
        if process.returncode is not None or time.monotonic() > deadline:
            raise StudioError("The studio did not start in the background.", f"See {log}.")
        time.sleep(0.1)
    return server.url


def _open_browser(url: str, is_wanted: bool) -> None:
    """Open the page where there is a screen; never with a token, which the list of processes would show."""
    has_screen = sys.platform != "linux" or "DISPLAY" in os.environ or "WAYLAND_DISPLAY" in os.environ
    if is_wanted and has_screen and "?token=" not in url:
        import webbrowser

        threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()


def with_default_command(arguments: Sequence[str]) -> list[str]:
    """The arguments with `serve` put first when they name no command."""
    info = {"-h", "--help", "--version"}
    commands = {item.name or getattr(item.callback, "__name__", "") for item in app.registered_commands}
    commands |= {group.name or "" for group in app.registered_groups}
    names_none = not arguments or (arguments[0].startswith("-") and not commands & set(arguments))
    return ["serve", *arguments] if names_none and not info & set(arguments[:1]) else list(arguments)


def main() -> None:
    """Run the command line."""
    run(with_default_command(sys.argv[1:]))


if __name__ == "__main__":
    main()
