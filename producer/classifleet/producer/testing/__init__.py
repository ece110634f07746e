"""A fleet in memory, to test code that uses a `Fleet` without a broker, a worker or a model.

You say what the answers are; everything else is what a real fleet does, down to ids, errors and record fields::

    def test_refuses_a_cat():
        with InMemoryFleet({"https://example.com/tom.jpg": {"tabby": 0.9, "tiger cat": 0.1}}) as fleet:
            assert my_handler(fleet, "https://example.com/tom.jpg") == "no cats, please"
            assert fleet.submitted[0].models == ("imagenet",)

Work is done at once, inside the call that submits it, unless the fleet is `paused`: then it waits for `run_pending`.
A `result(timeout=…)` of a paused fleet takes its time, so give it a short one. A sink is accepted and not written to.
"""

from classifleet.producer.testing._answers import Answer, Answers, Labels
from classifleet.producer.testing._fleets import AsyncInMemoryFleet, InMemoryFleet
from classifleet.producer.testing._state import Submission

__all__ = ["Answer", "Answers", "AsyncInMemoryFleet", "InMemoryFleet", "Labels", "Submission"]
