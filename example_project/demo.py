"""`make demo`: start and stop the example site and a runner together."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

HOST = "127.0.0.1"
LOGIN = "demo"
HERE = Path(__file__).resolve().parent
MANAGE = [sys.executable, str(HERE / "manage.py")]


def main() -> int:
    port = free_port(os.environ.get("PORT") or "8000")
    print("Preparing the database ...", flush=True)
    password = prepare()

    interrupts: list[int] = []
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, lambda number, frame: interrupts.append(number))

    children = {
        "web server": start("runserver", "--noreload", f"{HOST}:{port}"),
        "runner": start("run_peasy", "--noreload"),
    }
    announced = False
    while not interrupts and all(child.poll() is None for child in children.values()):
        if not announced and answers(port):
            announced = True
            print(
                f"\n  Open      http://{HOST}:{port}/"
                f"\n  Dashboard http://{HOST}:{port}/peasy/"
                f"\n  Admin     http://{HOST}:{port}/admin/"
                f"\n  Log in    {LOGIN} / {password}"
                "\n  Stop      Ctrl-C\n",
                flush=True,
            )
        time.sleep(0.1)

    failed = [
        f"The {name} stopped by itself with exit code {child.returncode}."
        for name, child in children.items()
        if child.poll() is not None and not interrupts
    ]
    stop(list(children.values()), interrupts)
    print("\n".join(failed) or "Stopped.", flush=True)
    return 1 if failed else 0


def free_port(text: str) -> int:
    """Return this port as a number. Exit with a message if it is invalid or in use."""
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
        sys.exit(f"PORT is {text!r}. Give a number from 1 to 65535: make demo PORT=8001")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, int(text)))
        except OSError as error:
            sys.exit(
                f"Port {text} cannot be used: {error.strerror}. "
                "Choose another one: make demo PORT=8001"
            )
    return int(text)


def prepare() -> str:
    """Migrate the database and create the demo user. Return the password."""
    os.environ["DJANGO_SETTINGS_MODULE"] = "example.settings"
    os.environ["DJANGO_RUNSERVER_HIDE_WARNING"] = "true"
    import django

    django.setup()
    from django.contrib.auth.models import User
    from django.core.management import call_command
    from django.db import connections
    from example.settings import stored_secret

    call_command("migrate", verbosity=0)
    password = stored_secret("demo_password", 8)
    user, _ = User.objects.get_or_create(
        username=LOGIN, defaults={"is_staff": True, "is_superuser": True}
    )
    if not user.check_password(password):
        user.set_password(password)
        user.save()
    connections.close_all()
    return password


def start(*command: str) -> subprocess.Popen:
    """Start a management command in a new session.

    The terminal then sends Ctrl-C only to this script, which passes it on once.
    """
    return subprocess.Popen([*MANAGE, *command], start_new_session=True, preexec_fn=die_with_parent)


def die_with_parent() -> None:
    """Let Linux stop this child if the script is killed. Other systems cannot do that."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def answers(port: int) -> bool:
    """Return whether a server listens on this port."""
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def stop(children: list[subprocess.Popen], interrupts: list[int]) -> None:
    """Stop the children with SIGINT, and pass on each further Ctrl-C. Kill them after a minute."""
    passed_on = 0
    deadline = time.monotonic() + 60
    if not interrupts:
        interrupts.append(signal.SIGINT)
    while running := [child for child in children if child.poll() is None]:
        if time.monotonic() > deadline:
            for child in running:
                os.killpg(child.pid, signal.SIGKILL)
        while passed_on < len(interrupts):
            passed_on += 1
            for child in running:
                child.send_signal(signal.SIGINT)
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())
