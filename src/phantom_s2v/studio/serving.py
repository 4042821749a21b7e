"""The web process: the first start's one-time link, what is needed beyond this machine, and the server."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable

import uvicorn
from sqlalchemy import select

from phantom_s2v.files.hosts import is_loopback
from phantom_s2v.studio import audit, housekeeping
from phantom_s2v.studio.access import SYSTEM
from phantom_s2v.studio.config import BESIDE, PREFIX, Settings
from phantom_s2v.studio.context import Studio
from phantom_s2v.studio.logs import log_json
from phantom_s2v.studio.projects import FIRST
from phantom_s2v.studio.schema import User
from phantom_s2v.studio.sign_in import make_link
from phantom_s2v.studio.web.app import create_app

GRACE, PAUSE = 30.0, 5.0  # seconds that a worker has to end, and before it is started again
BEYOND = (
    "The studio is reachable from other machines. Put a proxy with HTTPS in front of it, set PHANTOM_STUDIO_PUBLIC_URL to its "
    "https:// address and PHANTOM_STUDIO_PROXIES to its own; see docs/studio.md."
)


def first_link(studio: Studio) -> str | None:
    """The one-time link that makes the first administrator; None once somebody has a password."""
    with studio.writing() as session:
        if session.scalar(select(User.id).where(User.password_hash.is_not(None)).limit(1)):
            return None
        user = session.scalar(select(User).where(User.email == FIRST))
        if user is None:
            user = User(email=FIRST, name="Administrator", admin=True)
            session.add(user)
            session.flush()
            audit.append(session, None, "user added", user.id, admin=True)
        return f"{studio.settings.address}/link/{make_link(session, SYSTEM, user)}"


def warnings(settings: Settings) -> list[str]:
    """What is missing where other machines reach the studio."""
    return [BEYOND] if not is_loopback(settings.host) and not settings.secure else []


def keep_worker(studio: Studio, ended: threading.Event) -> None:
    """Run a worker beside the web process, and start it again when it ends, until the event is set; its state outlives it."""
    environment = {**os.environ, f"{PREFIX}FOLDER": str(studio.settings.folder), BESIDE: "1"}
    while not ended.is_set():
        worker = subprocess.Popen([sys.executable, "-m", "phantom_s2v", "studio", "worker"], env=environment)
        while worker.poll() is None and not ended.wait(1.0):
            pass
        worker.terminate()  # it saves the present step and gives its job back
        try:
            worker.wait(GRACE)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
        ended.wait(PAUSE)


def serve(studio: Studio, say: Callable[[str], object], worker: bool = True) -> None:
    """Serve until the process is ended, with a `worker` of this machine's beside it."""
    settings = studio.settings
    for warning in warnings(settings):
        say(warning)
    say(f"The studio is at {settings.address}")
    if link := first_link(studio):
        say(f"First sign-in, once, within {settings.link_hours} hours: {link}")
    log_json()
    ended = threading.Event()
    for works in (housekeeping.WORK, housekeeping.SENDING):
        threading.Thread(target=housekeeping.run, args=(studio, ended, works), daemon=True).start()
    working = threading.Thread(target=keep_worker, args=(studio, ended), daemon=True)
    if worker:
        working.start()
    try:
        uvicorn.run(
            create_app(studio), host=settings.host, port=settings.port, access_log=False, log_config=None, server_header=False,
            proxy_headers=bool(settings.proxies), forwarded_allow_ips=settings.proxies or None, timeout_graceful_shutdown=10,
        )  # fmt: skip
    finally:  # uvicorn passes the signal on that ended it
        ended.set()
        if worker:
            working.join()
