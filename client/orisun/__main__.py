"""``python -m orisun`` is ``orisun``."""

from orisun.cli import main

main(prog_name="orisun")
