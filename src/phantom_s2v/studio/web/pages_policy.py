"""Pages of a project's policy, its settings, and the rights that end."""

from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from phantom_s2v.studio import cost, kpis, policies, projects, rights, waiting
from phantom_s2v.studio.policies import CHECKLIST, KINDS, PURPOSES, SIMILARITY_SEARCH, TEMPLATE_NAMES, TEMPLATES, Rules
from phantom_s2v.studio.problems import N_, Conflict, Problem, collecting, raise_all
from phantom_s2v.studio.schema import Project, Subject
from phantom_s2v.studio.texts import whole
from phantom_s2v.studio.web import forms
from phantom_s2v.studio.web.view import Form, View, ViewOf

routes = APIRouter(include_in_schema=False)
LISTS = ("kinds", "purposes", "territories", "consent", "checklist")
NOTES = {name: rules.note for name, rules in TEMPLATES.items()}
CHOICES = {"kinds": KINDS, "purposes": PURPOSES, "checks": (*CHECKLIST, SIMILARITY_SEARCH), "templates": TEMPLATE_NAMES}


@routes.get("/projects/{project_id}/policy")
def policy_page(view: ViewOf) -> Response:
    """The policy in force and its versions."""
    with view.reading() as session:
        versions = policies.versions(session, view.actor, view.project_id)
        rules = policies.current(session, view.project) if view.project else None
        return view.page("policy.html", rules=rules, versions=versions, notes=NOTES, **CHOICES)


@routes.get("/projects/{project_id}/policy/new")
def new_policy_page(view: ViewOf) -> Response:
    """The form of a new version: from a template, or from the rules in force."""
    with view.reading() as session:
        assert view.project is not None
        rules = TEMPLATES.get(view.query("template") or "") or policies.current(session, view.project) or TEMPLATES["standard"]
    note = view.say(rules.note) if rules.note else ""
    view.form = Form(
        template=rules.template,
        label="yes" if rules.label else "",
        label_text=rules.label_text,
        signatures=str(rules.signatures),
        document="yes" if rules.document else "",
        retention_days=str(rules.retention_days),
        note=note,
        kinds=rules.kinds,
        purposes=rules.purposes,
        territories=rules.territories,
        consent=rules.consent,
        checklist=rules.checklist,
    )
    return view.page("policy_new.html", based_on=view.project.policy_version, **CHOICES)


@routes.post("/projects/{project_id}/policy")
def new_policy(view: ViewOf) -> Response:
    """Put a version in force."""
    try:
        with view.writing() as session:
            policies.put(session, view.actor, view.project_id, _rules(view.form), _based_on(view.form))
    except Problem as problem:
        based_on = view.project.policy_version if view.project and isinstance(problem, Conflict) else view.form["based_on"]
        return view.wrong("policy_new.html", problem, based_on=based_on, **CHOICES)
    begun = view.project is not None and view.project.policy_version > 0  # else the overview says what comes next
    return view.go(f"/projects/{view.project_id}{'/policy' if begun else ''}", N_("The policy is in force."))


def _based_on(form: Form) -> int | None:
    """The version that the form was opened with."""
    text = form["based_on"]
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def _rules(form: Form) -> Rules:
    """The rules as they were typed. Raises Problems, of everything that is wrong with them."""
    found, numbers = list[Problem](), {"signatures": 1, "retention_days": 1}
    for name, most in (("signatures", policies.MAX_SIGNATURES), ("retention_days", policies.LONGEST_RETENTION)):
        with collecting(found):
            numbers[name] = whole(form[name], name, 1, most)
    rules = Rules(
        template=form["template"],
        label=form["label"] == "yes",
        document=form["document"] == "yes",
        label_text=form["label_text"],
        signatures=numbers["signatures"],
        note=form["note"],
        retention_days=numbers["retention_days"],
        **{name: tuple(form.all(name)) for name in LISTS},
    )
    with collecting(found):
        policies.checked(rules)
    raise_all(found)
    return rules


@routes.get("/projects/{project_id}/rights")
def ending_rights(view: ViewOf) -> Response:
    """Rights that have an end, the nearest first."""
    with view.reading() as session:
        found = rights.ending(session, view.actor, view.project_id, view.query("after"))
        keys = {right.subject_id for right in found.items}
        named = dict(session.execute(select(Subject.id, Subject.name).where(Subject.id.in_(keys))).all())
        return view.page("rights.html", rights=found, names=named, **_dates(view))


def _dates(view: View) -> dict[str, Any]:
    return {"state": rights.state, "days_left": rights.days_left, "last_day": forms.last_day, "zone": view.studio.settings.zone}


@routes.get("/projects/{project_id}/settings")
def settings_page(view: ViewOf) -> Response:
    """Name, model, price, budget and KPIs of a project."""
    project = view.project
    assert project is not None
    typed: dict[str, Any] = {
        "name": project.name,
        "model": project.model,
        "currency": project.currency,
        "budget": forms.typed_amount(project.budget, project.currency),
        "price_per_hour": forms.typed_amount(project.price_per_hour, project.currency),
        "kpis": project.kpis,
    }
    for row in kpis.rows(project.kpis):
        typed |= {row.field: row.bound, f"{row.field}-reason": row.reason}
    view.form = Form(based_on=projects.stamp(project), **typed)
    return _settings(view, project)


def _settings(view: View, project: Project, problem: Problem | None = None) -> Response:
    with view.reading() as session:
        models = list(dict.fromkeys([project.model, *cost.offered(waiting.workers(session))]))
    values = {"currencies": projects.CURRENCIES, "rows": kpis.rows(project.kpis), "models": models}
    values["based_on"] = projects.stamp(project) if isinstance(problem, Conflict) else view.form["based_on"]
    return view.wrong("settings.html", problem, **values) if problem else view.page("settings.html", **values)


@routes.post("/projects/{project_id}/settings")
def change_settings(view: ViewOf) -> Response:
    """Save the settings."""
    project = view.project
    assert project is not None
    try:
        with view.writing() as session:
            _save(view, session, project)
    except Problem as problem:
        return _settings(view, project, problem)
    return view.go(f"/projects/{view.project_id}/settings", N_("Saved."))


def _save(view: View, session: Session, project: Project) -> None:
    """Of rows and file of KPIs, the file is taken where it was changed. Raises Problems, of everything that is wrong."""
    form, found = view.form, list[Problem]()
    file, price, budget = form["kpis"].replace("\r\n", "\n").strip(), 0, None
    with collecting(found):
        if file == project.kpis.strip():
            typed = {metric: (form[f"kpi-{metric}"].strip(), form[f"kpi-{metric}-reason"].strip()) for metric in kpis.ROWS}
            file = kpis.with_rows(project.kpis, typed)
    currency = form["currency"] if form["currency"] in projects.CURRENCIES else projects.CURRENCIES[0]
    with collecting(found):
        price = forms.amount(form["price_per_hour"] or "0", "price_per_hour", currency)
    with collecting(found):
        budget = forms.amount(form["budget"], "budget", currency) if form["budget"].strip() else None
    with collecting(found):
        settings = projects.ProjectSettings(form["name"], form["model"], currency, price, budget, file)
        projects.change(session, view.actor, view.project_id, settings, form["based_on"])
    raise_all(found)  # nothing was changed then
