"""`python -m classifleet.producer.cli`."""

from classifleet.producer.cli._main import main

main()
