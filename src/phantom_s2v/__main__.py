"""`python -m phantom_s2v`, which is what torchrun starts."""

from phantom_s2v.cli import main

main()
