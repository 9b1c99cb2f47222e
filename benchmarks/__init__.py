"""The same work here and in other tools: one model, dtype, number of threads and prompt, in one run."""
