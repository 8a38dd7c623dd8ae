"""`python -m sbnbench`."""

from sbnbench.cli import main

main()
