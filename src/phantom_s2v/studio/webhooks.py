"""Webhooks: events sent to addresses of the company, signed by HMAC, tried again with growing pauses.

An event is written in the transaction that makes it true, and sent afterwards. A receiver checks X-Phantom-Signature,
"t=SECONDS,v1=HEX": HEX is HMAC-SHA-256 with the webhook's secret over "SECONDS.BODY". Names and texts are never sent, only ids.
"""

import asyncio
import hmac
import ipaddress
import json
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from urllib.parse import urlsplit

import httpx
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from phantom_s2v.studio import audit
from phantom_s2v.studio.access import Actor, find
from phantom_s2v.studio.context import Studio
from phantom_s2v.studio.database import Page, paged
from phantom_s2v.studio.problems import N_, Conflict, Problem, collecting, raise_all
from phantom_s2v.studio.schema import Delivery, Role, Webhook, now
from phantom_s2v.studio.texts import line

EVENTS = (
    N_("video.submitted"),
    N_("video.commented"),
    N_("video.sent.back"),
    N_("video.approved"),
    N_("video.exported"),
    N_("job.queued"),
    N_("job.finished"),
    N_("job.failed"),
    N_("job.cancelled"),
    N_("job.stopped"),
    N_("job.set.aside"),
    N_("right.checked"),
    N_("right.expiring"),
    N_("right.expired"),
    N_("right.revoked"),
)
PAUSES = (10, 60, 300, 1800, 7200, 21600, 86400)  # seconds before the next try; after the last it is given up
SECONDS, TAKEN = 10.0, 200.0  # for an answer; that a delivery is one process's
AT_ONCE = 10  # deliveries
KEPT = timedelta(days=30)  # of what was delivered or given up
MOST = 10  # webhooks of a project
DELIVERED, ANSWERED = N_("delivered"), N_("answered")  # outcomes; the second one with a status behind it
NOT_FOUND, PRIVATE = N_("the name was not found"), N_("the address lies in a private network")
NO_ANSWER = N_("no answer")
CARRYING = ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("::/96")
Resolve = Callable[[str, int], list[str]]


@dataclass(frozen=True)
class Parcel:
    """A delivery on its way."""

    id: str
    url: str
    secret: str
    body: bytes
    attempts: int


def add(session: Session, actor: Actor, project_id: str, url: str, events: Sequence[str]) -> Webhook:
    """A new webhook of a project, as its administrator. Its secret is shown once. Raises Problem."""
    actor.must(project_id, Role.ADMIN)
    found: list[Problem] = []
    with collecting(found):
        url = line(url, "url", 1000)
        if not _is_address(url):
            raise Problem("Please enter an address that begins with https:// and has no password in it.", "url")
    if not events or set(events) - set(EVENTS):
        found.append(Problem("Please choose at least one.", "events"))
    raise_all(found)
    if len(of_project(session, actor, project_id)) >= MOST:
        raise Conflict("A project has at most %(most)d webhooks.", "url", most=MOST)
    made = Webhook(
        project_id=project_id, url=url, secret=secrets.token_hex(32), events=[each for each in EVENTS if each in events]
    )
    session.add(made)
    session.flush()
    audit.append(session, actor.id, "webhook added", made.id, events=made.events)
    return made


def _is_address(url: str) -> bool:
    """Whether events can be sent there: a host that names can be looked up of, a port that exists, no password."""
    try:
        parts, asked = urlsplit(url), httpx.URL(url)
        named = parts.hostname and parts.port != 0 and parts.hostname.encode("idna") and asked.raw_host
    except (ValueError, httpx.InvalidURL):  # UnicodeError, of names, is a ValueError
        return False
    return bool(named) and parts.scheme in ("http", "https") and not (parts.username or parts.password)


def of_project(session: Session, actor: Actor, project_id: str) -> Sequence[Webhook]:
    """Webhooks of a project."""
    actor.must(project_id, Role.ADMIN)
    return session.scalars(select(Webhook).where(Webhook.project_id == project_id).order_by(Webhook.created_at, Webhook.id)).all()


def remove(session: Session, actor: Actor, project_id: str, webhook_id: str) -> None:
    """Remove a webhook and what is still to be sent to it."""
    actor.must(project_id, Role.ADMIN)
    webhook = find(session, Webhook, webhook_id, project_id)
    session.execute(delete(Delivery).where(Delivery.webhook_id == webhook.id))
    session.delete(webhook)
    audit.append(session, actor.id, "webhook removed", webhook_id)


def deliveries(session: Session, actor: Actor, project_id: str, webhook_id: str, after: str | None = None) -> Page[Delivery]:
    """What was sent to a webhook of a project and what is still to be, the newest first. Raises NotFound for any other."""
    actor.must(project_id, Role.ADMIN)
    webhook = find(session, Webhook, webhook_id, project_id)
    return paged(session, select(Delivery).where(Delivery.webhook_id == webhook.id), [Delivery.created_at, Delivery.id], after)


def state(delivery: Delivery) -> str:
    """How a delivery stands: delivered, given up, failed (it is tried again), or waiting for its first try."""
    if delivery.next_at is None:
        return "delivered" if delivery.outcome == DELIVERED else "given up"
    return "failed" if delivery.outcome else "waiting"


def emit(session: Session, project_id: str, event: str, **values: object) -> None:
    """Write an event for every webhook of the project that wants it, in the transaction that makes it true."""
    for webhook in session.scalars(select(Webhook).where(Webhook.project_id == project_id)):
        if event in webhook.events:
            body = {"event": event, "project": project_id, "at": now().isoformat(timespec="seconds"), **values}
            session.add(Delivery(webhook_id=webhook.id, body=body))


def deliver(
    studio: Studio, transport: httpx.AsyncBaseTransport | None = None, resolve: Resolve | None = None, at: datetime | None = None
) -> int:
    """Send what is due, at most a hundred; how many were tried. Another process that does the same takes others."""
    with studio.reading() as session:
        if session.scalar(select(Delivery.id).where(Delivery.next_at <= (at or now())).limit(1)) is None:
            return 0
    parcels = _take(studio, at or now())
    asyncio.run(_deliver(studio, parcels, transport, resolve or addresses_of))
    return len(parcels)


async def _deliver(
    studio: Studio, parcels: Sequence[Parcel], transport: httpx.AsyncBaseTransport | None, resolve: Resolve
) -> None:
    """Send some at once, so that a receiver that takes its time keeps few of the others waiting."""
    turns = asyncio.Semaphore(AT_ONCE)
    async with httpx.AsyncClient(transport=transport, follow_redirects=False, trust_env=False) as client:

        async def one(parcel: Parcel) -> None:
            async with turns:
                outcome = await _sent(parcel, client, studio.settings.private_webhooks, resolve)
            _note(studio, parcel, outcome)

        await asyncio.gather(*map(one, parcels))


async def _sent(parcel: Parcel, client: httpx.AsyncClient, private: bool, resolve: Resolve) -> str:
    """The outcome of a delivery, within SECONDS in all: a receiver may answer a byte at a time, which no other limit ends."""
    try:
        async with asyncio.timeout(SECONDS):
            return await _send(parcel, client, private, resolve)
    except TimeoutError:
        return NO_ANSWER


def _note(studio: Studio, parcel: Parcel, outcome: str) -> None:
    """Keep how a delivery went, and when it is tried again."""
    with studio.writing() as session:
        row = session.get(Delivery, parcel.id)
        if row is None:
            return
        row.attempts, row.outcome = parcel.attempts + 1, outcome
        given_up = parcel.attempts >= len(PAUSES)
        row.next_at = None if outcome == DELIVERED or given_up else now() + timedelta(seconds=PAUSES[parcel.attempts])


def _take(studio: Studio, at: datetime) -> list[Parcel]:
    """What is due, set aside for a while so that nobody else sends it; what is old is removed."""
    with studio.writing() as session:
        session.execute(delete(Delivery).where(Delivery.next_at.is_(None), Delivery.created_at < at - KEPT))
        query = select(Delivery, Webhook).join(Webhook, Delivery.webhook_id == Webhook.id)
        rows = session.execute(query.where(Delivery.next_at <= at).order_by(Delivery.next_at).limit(100)).all()
        parcels = []
        for row, webhook in rows:
            row.next_at = at + timedelta(seconds=TAKEN)
            body = json.dumps({**row.body, "delivery": row.id}, sort_keys=True, ensure_ascii=False).encode()
            parcels.append(Parcel(row.id, webhook.url, webhook.secret, body, row.attempts))
        return parcels


async def _send(parcel: Parcel, client: httpx.AsyncClient, private: bool, resolve: Resolve) -> str:
    """Send one event to the very address that was checked; DELIVERED, or why not."""
    if not _is_address(parcel.url):  # from before they were looked at
        return NOT_FOUND
    url = httpx.URL(parcel.url)
    host = url.raw_host.decode("ascii")
    try:
        found = await asyncio.to_thread(resolve, host, url.port or (443 if url.scheme == "https" else 80))
    except OSError:
        return NOT_FOUND
    if not private and not all(map(is_public, found)):
        return PRIVATE
    seconds = str(int(time.time()))
    headers = {
        "Host": url.netloc.decode("ascii"),
        "Content-Type": "application/json",
        "X-Phantom-Delivery": parcel.id,
        "X-Phantom-Signature": f"t={seconds},v1={signature(parcel.secret, seconds, parcel.body)}",
    }
    address = f"[{found[0]}]" if ":" in found[0] else found[0]
    url = url.copy_with(host=address)
    try:
        async with client.stream("POST", url, content=parcel.body, headers=headers, extensions={"sni_hostname": host}) as answer:
            status = answer.status_code
    except httpx.HTTPError:
        return NO_ANSWER
    return DELIVERED if 200 <= status < 300 else f"{ANSWERED} {status}"


def signature(secret: str, seconds: str, body: bytes) -> str:
    """What a receiver computes to compare."""
    return hmac.new(secret.encode(), f"{seconds}.".encode() + body, "sha256").hexdigest()


def addresses_of(host: str, port: int) -> list[str]:
    """IP addresses of a name. Raises OSError where it has none."""
    return [str(each[4][0]) for each in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet, and to no network of this machine or company."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    carried = None if ip.version == 4 else _carried(ip)
    return all(each.is_global and not each.is_multicast for each in (ip, carried) if each is not None)


def _carried(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that gateways make of an IPv6 one: mapped, compatible, NAT64 (RFC 6052) or 6to4 (RFC 3056)."""
    if ip in CARRYING[0] or ip in CARRYING[1]:
        return ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
    return ip.ipv4_mapped or ip.sixtofour
