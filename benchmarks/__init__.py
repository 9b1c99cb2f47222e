"""The same work here and in other tools: one model, dtype, number of threads and prompt, in one run."""

TO_GOAL, GOAL = "integrated gradients to 1 %", 0.01  # the work with a goal, and its completeness error
TEXTS = (20, 200)  # how many texts the two studies have whose memory is compared
