"""Policies: what a project may show, for what, where, with which label, and who signs. Nothing runs without one.

A policy is a list of rules under a version number. Changing it makes a new version; an approval names its own.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from sqlalchemy import select
from sqlalchemy.orm import Session

from phantom_s2v.files.untrusted import typed
from phantom_s2v.studio import audit, rights
from phantom_s2v.studio.access import Actor
from phantom_s2v.studio.problems import CHANGED, N_, Conflict, NotFound, Problem, collecting, raise_all
from phantom_s2v.studio.schema import Job, JobSubject, Policy, Project, Right, Role, Subject
from phantom_s2v.studio.territories import TERRITORIES, WORLD, uncovered
from phantom_s2v.studio.texts import text

KINDS = (N_("person"), N_("character"), N_("product"), N_("logo"), N_("animal"), N_("place"), N_("other"))
PURPOSES = (
    N_("internal trial"),
    N_("website"),
    N_("social media"),
    N_("online advertising"),
    N_("television"),
    N_("stores and events"),
)
CHECKLIST = (N_("face"), N_("expression"), N_("clothes"), N_("logo"), N_("hands"), N_("text"))
SIMILARITY_SEARCH = N_("similarity search")  # evidence that no existing work or person was looked for and found alike
MAX_SIGNATURES, LONGEST_RETENTION = 3, 3650
ENDED = N_("A right behind this job was revoked or has expired. Make the video again under a right that is valid.")


@dataclass(frozen=True)
class Rules:
    """What a policy says."""

    template: str = "standard"
    kinds: tuple[str, ...] = KINDS  # of subjects that may be shown
    purposes: tuple[str, ...] = PURPOSES[:1]
    territories: tuple[str, ...] = (WORLD,)
    consent: tuple[str, ...] = ("person",)  # kinds whose right must be the consent of who is shown
    document: bool = True  # every right needs its document on file
    label: bool = True  # exports carry a visible label, unless a reason is written
    label_text: str = "AI-generated"
    signatures: int = 1  # approvers who sign, none of them the maker
    checklist: tuple[str, ...] = CHECKLIST  # answered at each approval
    retention_days: int = 365  # of videos that were never approved, and of drafts
    note: str = ""  # what people must heed and no rule here can check


class Wanted(Protocol):
    """A draft or a job, as far as a policy looks at it."""

    project_id: Any
    purpose: Any
    territories: Any


TEMPLATES: dict[str, Rules] = {
    "trial": Rules(
        template="trial",
        kinds=("character", "product", "logo", "animal", "place", "other"),
        retention_days=90,
        note=N_("First trial: own products and characters alone, no people, nothing leaves the company."),
    ),
    "standard": Rules(
        purposes=PURPOSES[:4],
        note=N_("Before publication, legal checks advertising law and the platform's rules on AI content."),
    ),
    "japan": Rules(
        template="japan",
        purposes=PURPOSES[:4],
        territories=("JP",),
        label_text="AI生成",
        signatures=2,
        checklist=(*CHECKLIST, SIMILARITY_SEARCH),
        note=N_(
            "Likeness and publicity rights: written permission of each person shown, and of their agency, for these uses. "
            "Evidence of a search for similar works is kept with the approval. The studio has tool, model and prompt on record."
        ),
    ),
}
TEMPLATE_NAMES = {
    "trial": N_("First trial: products and characters, inside the company"),
    "standard": N_("Regular use: web, social media and online advertising"),
    "japan": N_("Japan: likeness and publicity rights, similarity search, two signatures"),
}


def of_version(session: Session, project_id: str, version: int) -> Rules:
    """The rules of a version. Raises NotFound where there is none."""
    row = session.get(Policy, (project_id, version))
    if row is None:
        raise NotFound
    return typed(Rules, row.rules)


def current(session: Session, project: Project) -> Rules | None:
    """The rules in force; None where a project has no policy yet."""
    return of_version(session, project.id, project.policy_version) if project.policy_version else None


def versions(session: Session, actor: Actor, project_id: str) -> Sequence[Policy]:
    """All versions, the newest first; a project has few."""
    actor.must(project_id)
    return session.scalars(select(Policy).where(Policy.project_id == project_id).order_by(Policy.version.desc()).limit(100)).all()


def put(session: Session, actor: Actor, project_id: str, rules: Rules, based_on: int | None = None) -> Policy:
    """Put rules in force as a new version. Raises Problem for rules that no project may have, and Conflict where the version in
    force is no longer the one that the person had before them, `based_on`.
    """
    actor.must(project_id, Role.ADMIN)
    rules = checked(rules)
    project = session.get(Project, project_id)
    if project is None:
        raise NotFound
    if based_on is not None and based_on != project.policy_version:
        raise Conflict(CHANGED)
    project.policy_version += 1
    policy = Policy(
        project_id=project_id, version=project.policy_version, rules=_as_json(rules), created_by=actor.must_be_person()
    )
    session.add(policy)
    audit.append(session, actor.id, "policy put in force", project_id, version=policy.version, rules=policy.rules | {"note": ""})
    return policy


def _as_json(rules: Rules) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(rules).items()}


def checked(rules: Rules) -> Rules:
    """The rules, each value in its order. Raises Problems for values that are not among those allowed."""
    found: list[Problem] = []
    kept: dict[str, Any] = {}
    lists = {
        "kinds": KINDS,
        "purposes": PURPOSES,
        "territories": TERRITORIES,
        "consent": KINDS,
        "checklist": (*CHECKLIST, SIMILARITY_SEARCH),
    }
    for name, allowed in lists.items():
        chosen = getattr(rules, name)
        if set(chosen) - set(allowed):
            found.append(Problem("One of the choices does not exist.", name))
        if not chosen and name != "consent":
            found.append(Problem("Please choose at least one.", name))
        kept[name] = tuple(each for each in allowed if each in chosen)
    for name, least, most in (("signatures", 1, MAX_SIGNATURES), ("retention_days", 1, LONGEST_RETENTION)):
        if not least <= getattr(rules, name) <= most:
            found.append(Problem("Please enter a whole number from %(low)d to %(high)d.", name, low=least, high=most))
    for name, most in (("label_text", 40), ("note", 10_000), ("template", 40)):
        with collecting(found):
            kept[name] = text(getattr(rules, name), name, most, needed=name == "label_text" and rules.label)
    raise_all(found)
    return replace(rules, **kept)


def check(session: Session, wanted: Wanted, subjects: Iterable[Subject]) -> list[Problem]:
    """Why a draft must not run: no policy, what the policy forbids, or a subject without a right for it. Empty where it may.

    `subjects` are those of the draft, with their rights loaded. A job is checked again when a worker takes it (`obstacles`).
    """
    project = session.get_one(Project, wanted.project_id)
    rules = current(session, project)
    if rules is None:
        return [Problem("This project has no policy yet. An administrator of the project chooses one.")]
    found = []
    if not wanted.purpose:
        found.append(Problem("Please choose what the video is for.", "purpose"))
    elif wanted.purpose not in rules.purposes:
        found.append(Problem("The policy does not allow this purpose.", "purpose"))
    if not wanted.territories:
        found.append(Problem("Please say where the video will be shown.", "territories"))
    if beyond := uncovered(wanted.territories, rules.territories):
        found.append(Problem("The policy does not allow these territories: %(names)s.", "territories", names=beyond))
    for subject in subjects:
        found += _of_subject(subject, rules, wanted)
    return found


def _of_subject(subject: Subject, rules: Rules, wanted: Wanted) -> list[Problem]:
    if subject.project_id != wanted.project_id or subject.erased_at is not None:
        return [Problem("A subject was removed. Please choose again.", "subjects")]
    found = []
    if subject.kind not in rules.kinds:
        found.append(Problem("The policy does not allow %(name)s to be shown.", "subjects", name=subject.name))
    if rights.chosen(subject, rules, wanted.purpose, wanted.territories) is None:
        found.append(rights.lacking(subject, rules, wanted.purpose, wanted.territories))
    return found


def obstacles(session: Session, job: Job) -> list[Problem]:
    """Why a job must not run now, or what it made not be used: a right that it was queued under has ended, or the policy in
    force, which may be newer than the job, does not allow it.
    """
    behind = select(JobSubject.subject_id, Right).join(Right, Right.id == JobSubject.right_id).where(JobSubject.job_id == job.id)
    rows = session.execute(behind).unique().all()
    ended = [] if all(rights.is_valid(right) for _, right in rows) else [Problem(ENDED)]
    return ended + check(session, job, rights.with_rights(session, job.project_id, [key for key, _ in rows]))
