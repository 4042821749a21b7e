"""What to do about the reasons for which a build drops clips and pairs."""

ADVICE = (  # how a reason begins, and what can be done
    ("no subject: too small", "use footage that is closer to its subjects, or lower smallest_box and smallest_side in --config"),
    ("no subject: a blurred ref", "use sharper footage, or raise reference_blur in --config"),
    ("no subject: a reference image that is too small", "use footage of more pixels, or lower reference_side in --config"),
    ("no subject: a reference image that is too dark", "use footage that is better exposed, or raise reference_clipped"),
    ("no subject: a reference image of a low", "use other footage, or lower reference_aesthetic in --config"),
    ("no subject: a person", "use footage that shows head and shoulders, or raise shoulders in --config"),
    ("no subject: cut", "use footage that shows the subject whole, or raise cut in --config"),
    ("no subject: its phrase", "give captions that tell subjects apart (NAME.txt beside a video), or use --captioner"),
    ("no subject: detector", "look at the frames below; a larger --object-detector or --segmenter may agree"),
    ("no subject", "look at the frames below; where they show a subject, use --people, or larger models (--object-detector)"),
    ("ambiguous", "give captions that name each subject differently (NAME.txt beside a video), or use --captioner"),
    ("the caption", "correct the captions beside the videos, or use --captioner"),
    ("burnt-in text", "use footage without subtitles and logos, or crop them away"),
    ("black borders", "crop the borders away"),
    ("too short", "use footage with longer shots; the limit is shortest in --config"),
    ("too dark", "use brighter footage; the limit is dark in --config"),
    ("too bright", "use footage that is not overexposed; the limit is bright in --config"),
    ("blurred", "use sharper footage; the limit is blur in --config"),
    ("static", "use footage in which something moves; the limit is still in --config"),
    ("too much motion", "use footage from a steadier camera; the limit is shaking in --config"),
    ("cannot be cut out", "convert these videos with ffmpeg and build again"),
)  # fmt: skip
NO_PAIRS = (
    "use footage that shows the same subject in several shots: without cross-pairs references come from the clip itself, and a "
    "model learns to copy them"
)


def advice(reason: str) -> str:
    """What to do about a reason for which clips were dropped, as a sentence."""
    said = next(
        (words for start, words in ADVICE if reason.startswith(start)), "look at the frames below; limits are set in --config"
    )
    return f"{said[0].upper()}{said[1:]}."
