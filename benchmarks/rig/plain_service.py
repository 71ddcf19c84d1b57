"""The service with the adjustment head bypassed: it runs the plain graph and answers with zeros.

The difference to the normal service is the cost of the head.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from service.__main__ import main
from service.graph import head
from service.graph import session as graph


def _run_plain(self, inputs, *, top_k, full=False, **_adjustment):
    rows = len(inputs)
    feeds = {**self.feeds(inputs), **_UNUSED}
    if self.has_choice:
        feeds[head.BY_BLOCKS] = np.array(False)
    logits = self._session.run([head.LOGITS], feeds, self._options)[0]
    index, probability = np.zeros((rows, top_k), np.int64), np.ones((rows, top_k), np.float32)
    whole = (logits, logits, logits) if full else ()
    return graph.GraphOutputs(index, probability, index[:, 0], probability[:, 0], *whole)


_UNUSED = {
    head.TAU: np.zeros(1, np.float32),
    head.PRIOR_INDEX: np.zeros(1, np.int64),
    head.PRIOR_TABLE: np.zeros((1, 1), np.float32),
    head.TOP_K: np.ones(1, np.int64),
    head.FULL_ROWS: np.zeros(1, np.int64),
}
"""The session requires values for the head's inputs; the fetched output ignores them."""

if __name__ == "__main__":
    graph.Graph.run = _run_plain
    sys.exit(main())
