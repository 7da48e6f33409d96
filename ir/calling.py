"""What compiled code and whoever calls it agree on: the words of a run's context, and memory.

`cnnc.codegen` writes code by this, and `cnnc.runtime` calls it. Who changes it must count up
`VERSION` in `cnnc.runtime.artifact`, so that files with other code are refused.
"""

from __future__ import annotations

from enum import IntEnum

LINE = 64  # bytes of a cache line: arena, weights, scratch and all that lies in them start on one
STEP_LINE = 128  # bytes of a step's counter and of each thread's share of the step


class Slot(IntEnum):
    """The 64-bit words of a run's context; inputs and then outputs follow from `ARRAYS` on."""

    ARENA = 0  # address of the working memory
    WEIGHTS = 1  # address of the packed weights
    SCRATCH = 2  # address of the threads' scratch, one piece after the other
    IMAGES = 3  # how many images to run
    PROFILE = 4  # address of the cycles spent in each node and, last, a word to count with; or 0
    COUNTERS = 5  # address of the steps' counters, zero before the first run
    ROUND = 6  # how many images were run before with these counters
    GROUPS = 7  # how many groups of images
    ARRAYS = 8
