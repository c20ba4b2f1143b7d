"""`python -m star` is `star`."""

from star.cli import main

main()
