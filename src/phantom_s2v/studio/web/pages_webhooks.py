"""Pages of a project's webhooks: their list, and what was sent to each."""

from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response
from sqlalchemy.orm import Session

from phantom_s2v.studio import webhooks
from phantom_s2v.studio.access import find
from phantom_s2v.studio.problems import N_, Problem
from phantom_s2v.studio.schema import Webhook
from phantom_s2v.studio.web.view import Form, View, ViewOf

routes = APIRouter(include_in_schema=False)
LIST, ONE = "/projects/{project_id}/webhooks", "/projects/{project_id}/webhooks/{webhook_id}"


@routes.get(LIST)
def webhooks_page(view: ViewOf) -> Response:
    """Webhooks of the project, and the form of a new one."""
    with view.reading() as session:
        return view.page("webhooks.html", **_listed(view, session))


def _listed(view: View, session: Session, made: Webhook | None = None) -> dict[str, Any]:
    return {"webhooks": webhooks.of_project(session, view.actor, view.project_id), "events": webhooks.EVENTS, "made": made}


@routes.post(LIST)
def add_webhook(view: ViewOf) -> Response:
    """Add a webhook; the page shows its secret, once."""
    try:
        with view.writing() as session:
            made = webhooks.add(session, view.actor, view.project_id, view.form["url"], view.form.all("events"))
    except Problem as problem:
        with view.reading() as session:
            return view.wrong("webhooks.html", problem, **_listed(view, session))
    view.form = Form()
    with view.reading() as session:
        return view.page("webhooks.html", **_listed(view, session, made))


@routes.get(ONE)
def webhook_page(view: ViewOf) -> Response:
    """What was sent to a webhook, and how that went."""
    with view.reading() as session:
        webhook = find(session, Webhook, view.param("webhook_id"), view.project_id)
        page = webhooks.deliveries(session, view.actor, view.project_id, webhook.id, view.query("after"))
        return view.page("webhook.html", webhook=webhook, page=page, state=webhooks.state)


@routes.post(f"{ONE}/remove")
def remove_webhook(view: ViewOf) -> Response:
    """Remove a webhook and what is still to be sent to it."""
    with view.writing() as session:
        webhooks.remove(session, view.actor, view.project_id, view.param("webhook_id"))
    return view.go(f"/projects/{view.project_id}/webhooks", N_("The webhook was removed."))
