"""The page Verify: drop any file and see what is known of it."""

from fastapi import APIRouter
from fastapi.responses import Response

from phantom_s2v.studio import verify
from phantom_s2v.studio.problems import Problem
from phantom_s2v.studio.web.view import ViewOf

routes = APIRouter(include_in_schema=False)


@routes.get("/verify")
def verify_page(view: ViewOf) -> Response:
    """The form."""
    return view.page("verify.html", finding=None, name="")


@routes.post("/verify")
def verify_file(view: ViewOf) -> Response:
    """What is known of a file."""
    files = view.form.files("file")
    try:
        if not files:
            raise Problem("Please choose a file that is not empty.", "file")
        finding = verify.examine(view.studio, view.actor, files[0][1])
    except Problem as problem:
        return view.wrong("verify.html", problem, finding=None, name="")
    return view.page("verify.html", finding=finding, name=files[0][0])
