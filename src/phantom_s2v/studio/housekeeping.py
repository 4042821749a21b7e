"""What has to be seen to from time to time, whoever is there: rights that end, sessions that ended, files that crashes left."""

import threading
import time
from collections.abc import Callable, Sequence

from sqlalchemy import delete

from phantom_s2v.studio import erasure, notices, queue, rights, webhooks
from phantom_s2v.studio.context import Studio
from phantom_s2v.studio.logs import LOG
from phantom_s2v.studio.schema import Credential, now

PAUSE, MINUTE, HOUR = 5.0, 60.0, 3600.0


def end_rights(studio: Studio) -> None:
    """Warn of rights that end, and stop what runs under those that have ended."""
    with studio.writing() as session:
        rights.sweep(session)


def return_jobs(studio: Studio) -> None:
    """Put jobs of dead workers back into the queue where no other worker has done so."""
    with studio.writing() as session:
        queue.sweep(session, patience=queue.ABSENT)


def end_sessions(studio: Studio) -> None:
    """Remove sessions and links that are over."""
    with studio.writing() as session:
        session.execute(delete(Credential).where(Credential.expires_at <= now()))


def sweep_files(studio: Studio) -> None:
    """Remove files that crashes left."""
    studio.storage.sweep()


def send_webhooks(studio: Studio) -> None:
    """Send the events that are due."""
    webhooks.deliver(studio)


def remove_old(studio: Studio) -> None:
    """Remove what the projects' policies no longer keep, and old notices."""
    with studio.writing() as session:
        erasure.retain(session)
        notices.remove_old(session, now())


Work = Sequence[tuple[float, Callable[[Studio], object]]]
SENDING: Work = [(PAUSE, send_webhooks)]  # in a thread of its own: others' receivers decide how long it takes
WORK: Work = [
    (MINUTE, end_rights),
    (MINUTE, return_jobs),
    (HOUR, end_sessions),
    (HOUR, remove_old),
    (HOUR, sweep_files),
]


def run(studio: Studio, ended: threading.Event, works: Work = WORK, pause: float = PAUSE) -> None:
    """Do each work when its time has come, until the event is set. What fails is logged, and tried again the next time."""
    last = dict.fromkeys(range(len(works)), -HOUR)
    while True:
        for number, (every, work) in enumerate(works):
            if time.monotonic() - last[number] >= every:
                last[number] = time.monotonic()
                try:
                    work(studio)
                except Exception:
                    LOG.exception("housekeeping failed", extra={"values": {"work": work.__name__}})
        if ended.wait(pause):
            return
