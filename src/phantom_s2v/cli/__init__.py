"""The command line: parsing and printing only. Heavy imports happen inside commands.

Exit codes: 0 done, 1 a threshold that was asked for is missed, 2 bad input or refused, 3 done in part, 130 interrupted.
"""

from phantom_s2v.cli import (  # noqa: F401 - each registers its commands
    data,
    data_triplets,
    evaluate,
    evaluate_compare,
    evaluate_metrics,
    generate,
    lora,
    models,
    own,
    studio,
    train,
)
from phantom_s2v.cli.app import main

__all__ = ["main"]
