"""phantom studio: the web application of a team, and what its administrator does on the machine."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from platformdirs import user_data_path

from phantom_s2v.cli.app import app, say, whole
from phantom_s2v.errors import InputError

studio = typer.Typer(invoke_without_command=True, help="Run the studio: a team makes, checks and approves videos in the browser.")
user = typer.Typer(no_args_is_help=True, help="Manage the people of the studio.")
log = typer.Typer(no_args_is_help=True, help="Check the audit log.")
certificate = typer.Typer(no_args_is_help=True, help="Manage the certificate that signs exported videos.")
app.add_typer(studio, name="studio")
studio.add_typer(user, name="user")
studio.add_typer(log, name="audit")
studio.add_typer(certificate, name="certificate")
Folder = Annotated[
    Path | None,
    typer.Option("--folder", envvar="PHANTOM_STUDIO_FOLDER", help="Folder of the studio. [default: the user's data folder]"),
]


def opened(folder: Path | None, **given: Any) -> Any:
    """The studio of a folder, started: its tables are brought to this version's."""
    from phantom_s2v.studio.config import load_settings
    from phantom_s2v.studio.context import Studio

    os.umask(0o077)  # what the studio writes is for its owner alone
    made = Studio(load_settings(folder or user_data_path("phantom-studio", appauthor=False), **given))
    made.start()
    return made


@studio.callback()
def serve(
    context: typer.Context,
    folder: Folder = None,
    host: Annotated[
        str | None, typer.Option(help="Address to serve at. Other than 127.0.0.1 needs HTTPS in front of it.")
    ] = None,
    port: Annotated[int | None, whole(1, 65535, "Port to serve at.")] = None,
    worker: Annotated[bool, typer.Option(help="Run a worker with phantom-mini beside the pages.")] = True,
) -> None:
    """Serve the studio, with a worker of this machine. The first start prints a one-time link that makes an administrator."""
    if context.invoked_subcommand:
        if folder:  # the command's own option reads it there
            os.environ["PHANTOM_STUDIO_FOLDER"] = str(folder)
        return
    from phantom_s2v.studio.serving import serve

    serve(opened(folder, host=host, port=port), say, worker)


@user.command("add")
def add_user(
    email: Annotated[str, typer.Argument(help="E-mail address, which the person signs in with.")],
    name: Annotated[str, typer.Option(help="Name that others see.")],
    language: Annotated[str, typer.Option(help="Language of the pages: en or ja.")] = "en",
    admin: Annotated[bool, typer.Option("--admin", help="Administrator of the studio.")] = False,
    folder: Folder = None,
) -> None:
    """Add a person and print the one-time link by which they choose a password."""
    from phantom_s2v.studio.access import SYSTEM
    from phantom_s2v.studio.projects import add_user

    made = opened(folder)
    with made.writing() as session:
        _, token = add_user(session, SYSTEM, email, name, language, admin)
    say(f"{made.settings.address}/link/{token}")


@studio.command("worker")
def work(
    model: Annotated[
        list[str] | None, typer.Option(help="Model to offer, by name or folder; repeat for more. [default: phantom-mini]")
    ] = None,
    device: Annotated[str, typer.Option(help="Device: auto, cpu, cuda or cuda:N.")] = "auto",
    offload: Annotated[str, typer.Option(help="CPU offload: none, model (whole modules), group (block by block).")] = "none",
    threads: Annotated[
        int | None, whole(1, 1024, "CPU threads that new jobs are made with; a begun job keeps its number.")
    ] = None,
    folder: Folder = None,
) -> None:
    """Make the studio's videos until interrupted: take jobs from the queue, save their state, and measure what was made."""
    from phantom_s2v.models.memory import Placement
    from phantom_s2v.studio.logs import log_json
    from phantom_s2v.studio.worker import run_worker

    log_json()
    run_worker(opened(folder), model or ["phantom-mini"], Placement(device=device, offload=offload), threads)


@log.command("verify")
def verify_log(
    known: Annotated[
        str | None, typer.Option(help="NUMBER:SHA256 that audit head printed before, which the log must still hold.")
    ] = None,
    folder: Folder = None,
) -> None:
    """Find altered and missing lines of the audit log; exit code 1 if there are any."""
    from phantom_s2v.studio import audit
    from phantom_s2v.studio.config import load_settings
    from phantom_s2v.studio.context import Studio

    end = None
    if known is not None:
        number, _, sha256 = known.partition(":")
        if not number.isdigit() or len(sha256) != 64:
            raise InputError(f"--known must be NUMBER:SHA256, as phantom studio audit head prints it (got {known})")
        end = (int(number), sha256)
    made = Studio(load_settings(folder or user_data_path("phantom-studio", appauthor=False)))
    with made.reading() as session:
        count, found = audit.verify(session, made.head, end)
    say(*found, f"{count} lines, {len(found)} problems" if found else f"{count} lines, none altered or missing")
    if found:
        raise typer.Exit(1)


@log.command("head")
def show_head(folder: Folder = None) -> None:
    """Print number and hash of the last line. Kept elsewhere, it shows later whether database and head were both set back."""
    made = opened(folder)
    say(":".join(map(str, made.head.read()[-1])))


@studio.command("backup")
def back_up(
    target: Annotated[Path, typer.Argument(help="Output .tar; it holds the secret, so keep it where secrets are kept.")],
    folder: Folder = None,
) -> None:
    """Write a backup of everything, while people work."""
    from phantom_s2v.studio.backup import back_up

    say(f"{target}: {back_up(opened(folder), target)} files")


@studio.command()
def restore(
    source: Annotated[Path, typer.Argument(help="Backup of phantom studio backup.")],
    folder: Annotated[Path, typer.Option("--folder", help="Folder to restore into; it must be new or empty.")],
) -> None:
    """Restore a backup into a new folder, after checking every file and the audit log."""
    from phantom_s2v.studio.backup import restore

    os.umask(0o077)
    files, lines = restore(source, folder)
    say(f"{folder}: {files} files and {lines} audit lines, none damaged; start it with phantom studio --folder {folder}")


def _tell_certificate(made: Any) -> None:
    say(f"{made.subject}, valid until {made.valid_until:%Y-%m-%d}")


@certificate.command("make")
def make_certificate(
    organization: Annotated[str, typer.Option(help="Name of the company, which every export carries.")],
    days: Annotated[int, whole(1, 825, "Days that the certificate is valid.")] = 398,
    folder: Folder = None,
) -> None:
    """Make a new signing certificate by the studio's own authority, which the first one founds."""
    from phantom_s2v.studio import certificates
    from phantom_s2v.studio.access import SYSTEM

    made = opened(folder)
    with made.writing() as session:
        certificate = certificates.establish(session, SYSTEM, organization, days)
    _tell_certificate(certificate)
    say(f"Others trust the exports once they have {made.settings.certificates / 'root.pem'}")


@certificate.command("import")
def import_certificate(
    chain: Annotated[Path, typer.Argument(help="Certificates in PEM, the signing one first.")],
    key: Annotated[Path, typer.Argument(help="Its private key in PEM, without a password.")],
    folder: Folder = None,
) -> None:
    """Sign exports with a certificate from outside, after trying it."""
    from phantom_s2v.studio import certificates, credentials
    from phantom_s2v.studio.access import SYSTEM

    with opened(folder).writing() as session:
        taken = certificates.bring_in(session, SYSTEM, chain, key, credentials.try_out)
    _tell_certificate(taken)


@certificate.command("trust")
def trust_authority(
    root: Annotated[Path, typer.Argument(help="Certificate of the authority in PEM.")],
    folder: Folder = None,
) -> None:
    """Call files trusted on the page Verify that were signed under another authority."""
    from phantom_s2v.studio import certificates
    from phantom_s2v.studio.access import SYSTEM

    with opened(folder).writing() as session:
        say(f"trusted: {certificates.accept(session, SYSTEM, root)}")


@certificate.command("show")
def show_certificate(folder: Folder = None) -> None:
    """Print whose certificate signs exports, and until when it is valid."""
    from phantom_s2v.studio import certificates

    _tell_certificate(certificates.load(opened(folder).settings.certificates))
