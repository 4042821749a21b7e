"""The page on which a video is asked for: kept while it is typed, checked and estimated beside it, and queued by one button."""

import secrets
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from threading import BoundedSemaphore
from typing import Any, BinaryIO

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, Response
from sqlalchemy import or_, select
from sqlalchemy.orm import Session, joinedload, selectinload

from phantom_s2v.errors import InputError
from phantom_s2v.media.images import read_image
from phantom_s2v.models.base import Preset
from phantom_s2v.pipeline import prompts
from phantom_s2v.studio import access, cost, drafts, policies, rights, waiting
from phantom_s2v.studio.problems import N_, Conflict, NotFound, Problem, in_turn
from phantom_s2v.studio.schema import Draft, Policy, Project, Subject, User, Video
from phantom_s2v.studio.storage import Staged
from phantom_s2v.studio.territories import EU, WORLD
from phantom_s2v.studio.web.pages_subjects import file_response
from phantom_s2v.studio.web.view import Form, View, ViewOf

routes = APIRouter(include_in_schema=False)
SHOWN = 60  # subjects to choose from, the newest; all that a draft has are among them
ASKING = BoundedSemaphore(2)  # rephrasers that are waited for at once, each up to two minutes in a thread of the pool
IMAGES = 4  # that a rephraser sees
SHARES = (0.25, 0.5, 0.75, 1.0)  # of the model's usual length that are offered


@dataclass(frozen=True)
class Choices:
    """What the page offers."""

    subjects: Sequence[Subject]
    purposes: Sequence[str]
    territories: Sequence[str]
    lengths: Sequence[int]  # frames
    sizes: Sequence[tuple[int, int]]  # width, height
    fps: int
    preset: Preset | None
    takes_first_frame: bool


@routes.get("/projects/{project_id}/generate")
def generate(view: ViewOf) -> Response:
    """The draft that was written on last; without one, where to begin."""
    with view.reading() as session:
        for latest in drafts.mine(session, view.actor, view.project_id, size=1).items:
            return view.go(f"{_base(view)}/{latest.id}")
    return view.page("generate_start.html")


@routes.post("/projects/{project_id}/generate")
def new_draft(view: ViewOf) -> Response:
    """Begin a new video, for the subjects that were chosen, if any."""
    with view.writing() as session:
        draft = drafts.create(session, view.actor, view.project_id)
        drafts.change(draft, {"subjects": view.form.all("subjects")})
        _preselect(session, draft)
    return view.go(f"{_base(view)}/{draft.id}")


def _preselect(session: Session, draft: Draft) -> None:
    """Where the policy leaves one choice, it is made."""
    rules = policies.current(session, session.get_one(Project, draft.project_id))
    if rules and len(rules.purposes) == 1:
        draft.purpose = rules.purposes[0]
    if rules and len(rules.territories) == 1 and rules.territories != (WORLD,):
        draft.territories = list(rules.territories)


@routes.get("/projects/{project_id}/generate/{draft_id}")
def draft_page(view: ViewOf) -> Response:
    """A draft."""
    with view.reading() as session:
        return _page(view, session)


def _page(view: View, session: Session, problem: Problem | None = None) -> Response:
    """The form alone: what is said of the draft comes by a request of its own, so that typing can begin at once."""
    draft, project, _, _policy = _draft(view, session)  # held, so that it need not be read again
    choices = _choices(session, draft, project, _offered(session, draft))
    values = {"draft": draft, "once": secrets.token_hex(8), "choices": choices, **_selects(view, choices)}
    values |= {"rephraser": view.studio.settings.rephrase}
    view.form = Form(**_typed(draft, choices.preset))
    return view.wrong("generate.html", problem, **values) if problem else view.page("generate.html", **values)


def _offered(session: Session, draft: Draft) -> list[Subject]:
    """The draft's subjects in their order, then the newest others, with images and rights, in two queries."""
    alive = (Subject.project_id == draft.project_id, Subject.erased_at.is_(None))
    newest = select(Subject.id).where(*alive).order_by(Subject.created_at.desc(), Subject.id.desc()).limit(SHOWN)
    mine = select(Subject.id).where(*alive, Subject.id.in_(draft.subjects))
    query = select(Subject).where(or_(Subject.id.in_(newest), Subject.id.in_(mine)))  # by keys alone
    query = query.options(joinedload(Subject.images), selectinload(Subject.rights))
    found = {each.id: each for each in session.scalars(query).unique()}
    chosen = [found.pop(key) for key in draft.subjects if key in found]
    return [*chosen, *sorted(found.values(), key=lambda each: (each.created_at, each.id), reverse=True)]


def _typed(draft: Draft, preset: Preset | None) -> dict[str, Any]:
    """The form as it was typed; length and size begin at the model's own."""
    own = {"num_frames": str(preset.num_frames), "size": f"{preset.width}x{preset.height}"} if preset else {}
    return {
        "prompt": draft.prompt, "purpose": draft.purpose, "territories": draft.territories, "subjects": draft.subjects,
        "candidates": str(draft.candidates), **{name: draft.options.get(name) or own.get(name, "") for name in drafts.OPTIONS},
    }  # fmt: skip


def _selects(view: View, choices: Choices) -> dict[str, list[tuple[str, str]]]:
    """Values and words of the fields with a list."""
    shapes = (N_("square"), N_("landscape"), N_("portrait"))
    return {
        "lengths": [
            (str(n), view.say("%(seconds)s s (%(frames)d frames)", seconds=f"{n / choices.fps:.1f}", frames=n))
            for n in choices.lengths
        ],
        "sizes": [
            (f"{w}x{h}", f"{w} × {h}{view.say(', ')}{view.say(shapes[0 if w == h else 1 if w > h else 2])}")
            for w, h in choices.sizes
        ],
        "candidates": [(str(n), str(n)) for n in (1, 2, 3, 4, 6, 8, drafts.MAX_CANDIDATES)],
    }


def looked_at(view: View, session: Session) -> tuple[Draft, drafts.Look, waiting.Line]:
    """The draft of the address, what is to be said of it, and the queue with it, in four queries."""
    draft, project, user, _policy = _draft(view, session)  # held, so that it need not be read again
    query = select(Subject).where(Subject.project_id == draft.project_id, Subject.id.in_(draft.subjects))
    query = query.options(joinedload(Subject.images), joinedload(Subject.rights))  # few subjects, so in one query
    found = {each.id: each for each in session.scalars(query).unique()}
    seen = waiting.snapshot(session, project.id)
    look = drafts.look(session, draft, project, [found[key] for key in draft.subjects if key in found], seen)
    return draft, look, seen.line((project, user, look.cost.seconds if look.cost else 0.0))


def _look(view: View, session: Session) -> Response:
    """What is said of a draft: checks, cost, and when its turn would come."""
    draft, look, line = looked_at(view, session)
    return HTMLResponse(view.render("generate_look.html", draft=draft, look=look, place=line.places[""], line=line))


def _choices(session: Session, draft: Draft, project: Project, subjects: Sequence[Subject]) -> Choices:
    rules = policies.current(session, project)
    purposes, territories = (rules.purposes, rules.territories) if rules else ((), ())
    if territories == (WORLD,):
        territories = (WORLD, EU, "JP", "US", "GB")
    territories = list(dict.fromkeys([*territories, *draft.territories]))
    worker = cost.offer_of(waiting.workers(session), project.model)
    preset = cost.preset_of(worker.offers["models"][project.model]) if worker else cost.own_preset(project.model)
    if preset is None:
        return Choices(subjects, purposes, territories, [], [], 8, None, False)
    length, usual = str(draft.options.get("num_frames", "")), (preset.num_frames - 1) // 4
    lengths = sorted({4 * max(1, round(usual * share)) + 1 for share in SHARES} | ({int(length)} if length.isdigit() else set()))
    sizes = _sizes(preset, draft.options.get("size", ""))
    return Choices(subjects, purposes, territories, lengths, sizes, preset.fps, preset, preset.takes_first_frame)


def _sizes(preset: Preset, chosen: str) -> list[tuple[int, int]]:
    """Sizes (width, height): those that the model supports, or its usual one with a landscape and a portrait beside it."""
    found = [(width, height) for height, width in preset.sizes]
    if not found:
        low, high = preset.side_range
        long = min(high, preset.width * 3 // 2) // preset.multiple * preset.multiple
        found = [(preset.width, preset.height), (long, preset.height), (preset.width, max(low, long))]
    width, _, height = chosen.partition("x")
    if width.isdigit() and height.isdigit():
        found.append((int(width), int(height)))
    return list(dict.fromkeys(found))


@routes.post("/projects/{project_id}/generate/{draft_id}/save")
def save(view: ViewOf) -> Response:
    """Keep what was typed; answers with what is to be said of it."""
    with view.writing() as session:
        _take_in(view, _draft(view, session)[0])
    with view.reading() as session:
        return _look(view, session)


@routes.get("/projects/{project_id}/generate/{draft_id}/look")
def look(view: ViewOf) -> Response:
    """What is to be said of a draft as it is."""
    with view.reading() as session:
        return _look(view, session)


@routes.get("/projects/{project_id}/drafts")
def drafts_page(view: ViewOf) -> Response:
    """One's own drafts."""
    with view.reading() as session:
        return view.page("drafts.html", drafts=drafts.mine(session, view.actor, view.project_id, view.query("after")))


def _take_in(view: View, draft: Draft) -> None:
    form = view.form
    typed: dict[str, Any] = {name: form[name] for name in ("prompt", "purpose", "candidates", *drafts.OPTIONS)}
    drafts.change(draft, {**typed, "subjects": form.all("subjects"), "territories": form.all("territories")})


@routes.post("/projects/{project_id}/generate/{draft_id}/run")
def run(view: ViewOf) -> Response:
    """Queue the draft; what was typed is kept whatever comes of it. Sent twice, it is queued once."""
    with view.writing() as session:
        _take_in(view, _draft(view, session)[0])
    try:
        with view.writing() as session:
            job = drafts.run(session, view.actor, _draft(view, session)[0], view.form["once"][:64])
    except Problem as problem:
        with view.reading() as session:
            return _page(view, session, problem)
    return view.go(f"/projects/{view.project_id}/jobs/{job.id}", N_("Your video is in the queue."))


@routes.post("/projects/{project_id}/generate/{draft_id}/rephrase")
def rephrase(view: ViewOf) -> Response:
    """A proposal for the prompt, which stands beside what was typed and changes nothing by itself."""
    try:
        (proposal, notices), problem = proposed(view), ""
    except InputError as error:
        if isinstance(error, Problem):
            raise
        proposal, notices, problem = "", [], str(error)
    return HTMLResponse(view.render("generate_proposal.html", proposal=proposal, problem=problem, notices=notices))


def proposed(view: View) -> tuple[str, list[tuple[str, dict[str, str]]]]:
    """The rephraser's prompt for the draft of the address, and what it leaves open. Raises InputError where none comes back."""
    where = view.studio.settings.rephrase
    with view.reading() as session:
        draft = _draft(view, session)[0]
        if not where:
            raise Conflict("No rephraser is set up. An administrator names one in PHANTOM_STUDIO_REPHRASE.")
        subjects = rights.with_rights(session, draft.project_id, draft.subjects)
        blobs = [subject.images[0].blob for subject in subjects if subject.images][:IMAGES]
        prompt = draft.prompt
    with in_turn(ASKING, patience=0):
        shown = [read_image(view.studio.storage.path(blob))[0] for blob in blobs]
        proposal = prompts.rephrase(prompt, shown, where)
    return proposal, prompts.open_points(proposal, [subject.name for subject in subjects])


@routes.post("/projects/{project_id}/generate/{draft_id}/remove")
def remove(view: ViewOf) -> Response:
    """Throw a draft away."""
    with view.writing() as session:
        drafts.remove(session, view.actor, _draft(view, session)[0])
    return view.go(_base(view), N_("The draft was removed."))


@routes.post("/projects/{project_id}/generate/{draft_id}/first-frame")
def set_first_frame(view: ViewOf) -> Response:
    """Take an image that the video begins with, decoded as every upload is; without a file the present one goes."""
    given, address = view.form.files("image"), f"{_base(view)}/{view.param('draft_id')}"
    with view.reading() as session:
        draft, problem = _draft(view, session)[0], None
        had = draft.first_frame
        if not given and not had:
            return _page(view, session, Problem("Choose an image file.", "image"))
    with ExitStack() as stack:
        try:
            staged = decoded(view, stack, given[0][1]) if given else None
            with view.writing() as session:
                drafts.set_first_frame(session, _draft(view, session)[0], staged)
        except Problem as error:
            problem = error
    if problem:
        problem.field = "image"
        with view.reading() as session:
            return _page(view, session, problem)
    return view.go(address, N_("The video begins with this image from now on.") if given else N_("The first frame was removed."))


def decoded(view: View, stack: ExitStack, source: BinaryIO) -> Staged:
    """An uploaded image, decoded and staged until the stack closes."""
    found = stack.enter_context(view.request.app.state.decoder.decoded(source))
    return stack.enter_context(view.studio.storage.staged(stack.enter_context(found.image.open("rb"))))


@routes.get("/projects/{project_id}/generate/{draft_id}/first-frame")
def first_frame(view: ViewOf) -> Response:
    """The image that the video begins with."""
    with view.reading() as session:
        draft = _draft(view, session)[0]
        if draft.first_frame is None:
            raise NotFound
        return file_response(view, session, draft.first_frame)


@routes.post("/projects/{project_id}/videos/{video_id}/again")
def again(view: ViewOf) -> Response:
    """Make a video again: a draft with all that it was made of."""
    with view.writing() as session:
        draft, changed = drafts.again(session, view.actor, access.find(session, Video, view.param("video_id"), view.project_id))
    address = f"{_base(view)}/{draft.id}"
    if changed:
        said = N_("Everything is as it was, but for the reference images of %(names)s, which have changed since.")
        return view.go(address, said, names=", ".join(changed))
    return view.go(address, N_("Everything is as it was. Change what you like, then run it."))


def _draft(view: View, session: Session) -> tuple[Draft, Project, User, Policy | None]:
    return drafts.find(session, view.actor, view.project_id, view.param("draft_id"))


def _base(view: View) -> str:
    return f"/projects/{view.project_id}/generate"
