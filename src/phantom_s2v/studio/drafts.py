"""What a maker is writing: kept with every change, checked while typing, and turned into a job.

A draft keeps what was typed as it was typed, sense or not, so that nothing is lost; `request_of` says what is wrong with it.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from phantom_s2v.errors import InputError
from phantom_s2v.files.reuse import as_json
from phantom_s2v.geometry import MAX_SUBJECTS, parse_size
from phantom_s2v.models.base import Preset
from phantom_s2v.pipeline.prompts import open_points
from phantom_s2v.pipeline.request import MAX_FRAMES, Reference, Request, check_request, with_defaults
from phantom_s2v.studio import audit, cost, policies, queue, rights
from phantom_s2v.studio.access import Actor
from phantom_s2v.studio.context import studio_of
from phantom_s2v.studio.database import Page, paged
from phantom_s2v.studio.problems import N_, NotFound, Problem, Problems, collecting, raise_all
from phantom_s2v.studio.schema import Draft, Job, JobSubject, Policy, Project, Role, Subject, SubjectImage, User, Video, now
from phantom_s2v.studio.storage import Staged
from phantom_s2v.studio.texts import decimal, whole
from phantom_s2v.studio.waiting import Snapshot, snapshot

LONGEST, MAX_CANDIDATES = 10_000, 16
BACKGROUND = "background"  # what the pipeline calls an image of the place
OPTIONS = ("size", "num_frames", "seed", "num_inference_steps", "guidance_scale", "image_guidance_scale", "negative_prompt")
WHOLE = {"num_frames": (1, MAX_FRAMES), "seed": (0, 2**32 - 1), "num_inference_steps": (1, 1000)}  # their ranges
DECIMAL, GUIDANCE = ("guidance_scale", "image_guidance_scale"), (0, 100)
MENTIONS = re.compile(r"\b(?:the )?(?:first|second|third|fourth)? ?subjects?\b", re.IGNORECASE)
WHICH = re.compile(r"(?<!first )(?<!second )(?<!third )(?<!fourth )\bsubject\b", re.IGNORECASE)  # without saying which
FOREIGN = re.compile(r"[^\W\d_a-zA-Z\u00c0-\u024f]")  # letters that are not Latin
NOT_ENGLISH = N_("This model understands English alone. Write what happens in English.")
TOO_DEAR = N_("This costs more than the project's budget has left.")
NOT_DISTINGUISHED = N_("Several subjects are chosen. Write “the first subject” and “the second subject”, or their names.")
NOT_NAMED = N_("The prompt mentions no subject. Say what %(name)s does.")
FIELDS = {  # words at the beginning of the pipeline's sentences -> the field that they are about
    "image_guidance_scale": "image_guidance_scale", "guidance_scale": "guidance_scale", "num_frames": "num_frames",
    "num_inference_steps": "num_inference_steps", "seed": "seed", "size": "size", "sides": "size", "height": "size",
    "width": "size", "the video": "num_frames", "negative_prompt": "negative_prompt", "prompt": "prompt",
    "number of images": "subjects", "number of reference images": "subjects", "number of subjects": "subjects",
}  # fmt: skip


def find(session: Session, actor: Actor, project_id: str, draft_id: str) -> tuple[Draft, Project, User, Policy | None]:
    """A draft of one's own, with its project, its maker and the policy in force. Raises NotFound for any other."""
    actor.must(project_id, Role.MAKER)
    mine = (Draft.id == draft_id) & (Draft.project_id == project_id) & (Draft.user_id == actor.id)
    query = select(Draft, Project, User, Policy).join(Project, Project.id == Draft.project_id)
    query = query.join(User, User.id == Draft.user_id)  # and the policy in force, which is looked at next
    query = query.outerjoin(Policy, (Policy.project_id == Project.id) & (Policy.version == Project.policy_version))
    found = session.execute(query.where(mine)).one_or_none()
    if found is None:
        raise NotFound
    return found[0], found[1], found[2], found[3]


def mine(session: Session, actor: Actor, project_id: str, after: str | None = None, size: int = 12) -> Page[Draft]:
    """One's own drafts of a project, the latest first."""
    query = select(Draft).where(Draft.project_id == project_id, Draft.user_id == actor.id)
    return paged(session, query, [Draft.updated_at, Draft.id], after, size)


def create(session: Session, actor: Actor, project_id: str, **values: Any) -> Draft:
    """A new draft."""
    actor.must(project_id, Role.MAKER)
    draft = Draft(project_id=project_id, user_id=actor.must_be_person(), **values)
    session.add(draft)
    session.flush()
    audit.append(session, actor.id, "draft made", draft.id, project=project_id)
    return draft


def change(draft: Draft, typed: Mapping[str, Any]) -> None:
    """Keep what was typed, whatever it is; what is not in `typed` stays. Lengths are cut at what fields can hold."""
    if "prompt" in typed:
        draft.prompt = str(typed["prompt"]).replace("\x00", "").replace("\r\n", "\n")[:LONGEST]
    kept = {name: str(typed[name]).strip()[:LONGEST] for name in OPTIONS if name in typed}
    draft.options = {**draft.options, **kept}
    if "subjects" in typed:
        draft.subjects = list(dict.fromkeys(str(key)[:32] for key in typed["subjects"]))[: 2 * MAX_SUBJECTS]
    if "purpose" in typed:
        draft.purpose = str(typed["purpose"])[:100]
    if "territories" in typed:
        draft.territories = list(dict.fromkeys(str(each)[:8] for each in typed["territories"]))[:100]
    if str(typed.get("candidates", "")).isdigit():
        draft.candidates = min(MAX_CANDIDATES, max(1, int(typed["candidates"])))
    draft.updated_at = now()


def set_first_frame(session: Session, draft: Draft, staged: Staged | None) -> None:
    """Let the video begin with an image, a PNG that was decoded and staged; None: with none any more."""
    storage = studio_of(session).storage
    before, draft.first_frame = draft.first_frame, storage.keep(session, staged, "image/png") if staged else None
    draft.updated_at = now()
    storage.forget(session, [before] if before else [])


def remove(session: Session, actor: Actor, draft: Draft) -> None:
    """Throw a draft away."""
    audit.append(session, actor.id, "draft removed", draft.id)
    frame = draft.first_frame
    session.delete(draft)
    studio_of(session).storage.forget(session, [frame] if frame else [])


def again(session: Session, actor: Actor, video: Video) -> tuple[Draft, list[str]]:
    """A draft with all that a video was made of, its seed too: unchanged it gives the same video again. With it the names of
    subjects that have other images by now, or are gone, so that it would not.
    """
    job = session.get_one(Job, video.job_id)
    wanted = job.request
    keys = session.scalars(select(JobSubject.subject_id).where(JobSubject.job_id == job.id))
    subjects = rights.with_rights(session, video.project_id, keys)
    references = wanted.get("references") or ()
    order = [each["subject"] for each in references]
    subjects.sort(key=lambda each: order.index(each.name) if each.name in order else len(order))
    options = {name: str(wanted[name]) for name in OPTIONS if wanted.get(name) is not None}  # of a version before, some are not
    options |= {"seed": str(video.seed)}
    if wanted.get("width") and wanted.get("height"):
        options["size"] = f"{wanted['width']}x{wanted['height']}"
    now_shown = {subject.name: {image.blob for image in subject.images} for subject in subjects}
    changed = {each["subject"] for each in references if each["path"] not in now_shown.get(each["subject"], ())}
    draft = create(
        session, actor, video.project_id, prompt=wanted["prompt"], options=options, subjects=[each.id for each in subjects],
        first_frame=wanted.get("first_frame"), purpose=job.purpose, territories=job.territories,
    )  # fmt: skip
    return draft, sorted(changed)


def request_of(draft: Draft, preset: Preset, subjects: Iterable[Subject]) -> Request:
    """The request of a draft, its files as the hashes of blobs. Raises Problem for what cannot be made, beside its field."""
    problems: list[Problem] = []
    values = _numbers(draft, problems)
    try:
        height, width = parse_size(size) if (size := draft.options.get("size")) else (None, None)
    except InputError:
        problems.append(Problem("Please choose one of the list.", "size"))
        height = width = None
    subjects = list(subjects)
    names = [subject.name for subject in subjects]
    if twice := next((name for name in names if names.count(name) > 1), None):
        problems.append(Problem("Two of the subjects are called %(name)s. Rename one of them.", "subjects", name=twice))
    if BACKGROUND in names:
        problems.append(Problem("No subject can be called %(name)s. Please rename it.", "subjects", name=BACKGROUND))
    if len(names) > (most := min(MAX_SUBJECTS, preset.max_images)):
        problems.append(Problem("Please choose at most %(most)d subjects.", "subjects", most=most))
    if draft.first_frame and not preset.takes_first_frame:
        problems.append(Problem("%(model)s cannot begin with an image of your own. Remove it.", "image", model=preset.name))
    if not draft.prompt.strip():
        problems.append(Problem("Describe what happens in the video.", "prompt"))
    raise_all(problems)
    request = with_defaults(
        preset, prompt=draft.prompt.strip(), references=_references(subjects, preset), height=height, width=width,
        first_frame=draft.first_frame, negative_prompt=draft.options.get("negative_prompt") or None, **values,
    )  # fmt: skip
    try:
        check_request(request, preset)
    except InputError as error:
        field = next((field for word, field in FIELDS.items() if word in str(error).split(" must")[0]), "")
        if field in ("size", "num_frames"):
            raise Problem("%(model)s does not make videos of this size and length.", field, model=preset.name) from error
        raise Problem("%(sentence)s", field, sentence=str(error)) from error
    return request


def _numbers(draft: Draft, problems: list[Problem]) -> dict[str, float | int]:
    """The typed numbers; what is none goes to `problems`."""
    values: dict[str, float | int] = {}
    for name in (*WHOLE, *DECIMAL):
        text = draft.options.get(name, "")
        if not text:
            continue
        with collecting(problems):
            values[name] = whole(text, name, *WHOLE[name]) if name in WHOLE else decimal(text, name, *GUIDANCE)
    return values


def _references(subjects: list[Subject], preset: Preset) -> tuple[Reference, ...]:
    """Images of the subjects in their order: all where the model was trained with several views, else the first of each."""

    def images(subject: Subject, left: int) -> list[SubjectImage]:
        return subject.images[: max(1, left) if preset.takes_views else 1]

    found: list[Reference] = []
    for i, subject in enumerate(subjects):
        later = len(subjects) - i - 1  # each of which needs one place
        found += [Reference(each.blob, subject.name) for each in images(subject, preset.max_images - len(found) - later)]
    return tuple(found)


def notices(draft: Draft, subjects: Iterable[Subject], checks_prompts: bool) -> list[tuple[str, dict[str, str]]]:
    """What the prompt leaves open: a sentence with places for values, and the values.

    A model that reads free text needs each subject described, distinctly. One that knows "the subject" and "the first subject"
    alone needs it mentioned, by that or by its name.
    """
    names = [subject.name for subject in subjects]
    if not draft.prompt.strip():
        return []
    if checks_prompts:
        return open_points(draft.prompt, names)
    count = len(MENTIONS.findall(draft.prompt))
    missing = [name for name in names if name.casefold() not in draft.prompt.casefold()]
    foreign = [(NOT_ENGLISH, {})] if FOREIGN.search(_without(draft.prompt, names)) else []
    if len(names) > 1 and WHICH.search(_without(draft.prompt, names)):
        foreign.append((NOT_DISTINGUISHED, {}))
    return [*foreign, *((NOT_NAMED, {"name": name}) for name in missing[count:])]


def _without(prompt: str, names: Iterable[str]) -> str:
    """A prompt without the subjects' names, which may be in any script."""
    for name in names:
        prompt = prompt.replace(name, "")
    return prompt


@dataclass(frozen=True)
class Look:
    """Everything that the page says of a draft before it runs."""

    subjects: list[Subject]
    problems: list[Problem]  # why it cannot run
    notices: list[tuple[str, dict[str, str]]] | None  # None: it is not known what the model reads
    preset: Preset | None
    cost: cost.Cost | None
    request: Request | None
    worker: Any


def look(session: Session, draft: Draft, project: Project, subjects: list[Subject], seen: Snapshot) -> Look:
    """Check a draft with its subjects, and estimate it by the queue as it was seen with its project."""
    problems = policies.check(session, draft, subjects)
    if not subjects:
        problems.append(Problem("Choose at least one subject.", "subjects"))
    problems += [
        Problem("%(name)s has no reference image yet.", "subjects", name=each.name) for each in subjects if not each.images
    ]
    if len(subjects) < len(draft.subjects):
        problems.append(Problem("A subject was removed. Please choose again.", "subjects"))
    worker = cost.offer_of(seen.workers, project.model)
    if worker is None:
        own = cost.own_preset(project.model)
        with collecting(problems):
            if own:
                request_of(draft, own, subjects)
        problems.append(Problem(NO_WORKER, model=project.model))
        reads = cost.own_reading(project.model)
        found = None if reads is None else notices(draft, subjects, reads)
        return Look(subjects, problems, found, own, None, None, None)
    offer = worker.offers["models"][project.model]
    preset, request, expected = cost.preset_of(offer), None, None
    try:
        request = request_of(draft, preset, subjects)
        expected = cost.estimate(seen, project, offer, request, draft.candidates)
        if not expected.fits:
            problems.append(Problem(TOO_DEAR))
    except Problems as error:
        problems += error.each
    except Problem as error:
        problems.append(error)
    found = notices(draft, subjects, offer["checks_prompts"])
    return Look(subjects, problems, found, preset, expected, request, worker)


NO_WORKER = N_(
    "The worker that makes videos with %(model)s has not started yet. If it takes longer than a few minutes, an administrator "
    "starts one: phantom studio worker"
)


def run(session: Session, actor: Actor, draft: Draft, once: str = "") -> Job:
    """Queue a draft. The same `once` gives the job that it gave the first time, so that sending again makes no second one.

    Raises Problem for all that speaks against it.
    """
    actor.must(draft.project_id, Role.MAKER)
    if once and (before := draft.options.get("jobs", {}).get(once)):
        found = session.get(Job, before)
        if found is not None:  # else it was removed since, when its time of retention had passed
            return found
    project = session.get_one(Project, draft.project_id, with_for_update=True)
    subjects = rights.with_rights(session, draft.project_id, draft.subjects)
    seen = look(session, draft, project, subjects, snapshot(session, project.id))
    raise_all(seen.problems)
    assert seen.request
    assert seen.cost
    rules = policies.of_version(session, project.id, project.policy_version)
    job = Job(
        project_id=project.id, user_id=actor.must_be_person(), request=as_json(asdict(seen.request)),
        requires={**queue.requirement(seen.worker.offers, project.model), "computed_seconds": seen.cost.computed},
        purpose=draft.purpose, territories=draft.territories, policy_version=project.policy_version,
        candidates=draft.candidates, steps=seen.request.num_inference_steps, estimated_seconds=seen.cost.seconds,
    )  # fmt: skip
    queue.enqueue(session, job)
    for subject in seen.subjects:
        right = rights.chosen(subject, rules, draft.purpose, draft.territories)
        assert right  # else policies.check had found it
        session.add(JobSubject(job_id=job.id, subject_id=subject.id, right_id=right.id))
    if once:
        draft.options = {**draft.options, "jobs": {once: job.id}}
    return job


def resume(session: Session, actor: Actor, job: Job) -> None:
    """Let a job that failed or was set aside try again. Raises Problem where a right, the policy or the budget is against it."""
    queue.resume(session, actor.must_be_person(), job)
    problems, project = policies.obstacles(session, job), session.get_one(Project, job.project_id)
    committed = queue.cost_of(snapshot(session, project.id).committed, project.price_per_hour)
    if project.budget is not None and project.spent + committed > project.budget:
        problems.append(Problem(TOO_DEAR))
    raise_all(problems)
