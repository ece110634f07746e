"""`classifleet …` as it is where the extra [openvino] is not installed."""

from __future__ import annotations

import sys

sys.modules["openvino"] = None  # type: ignore[assignment]  # as good as absent to import and find_spec

if __name__ == "__main__":
    from classifleet.producer.cli import main

    main()
