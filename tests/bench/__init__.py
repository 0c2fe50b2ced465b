"""The benchmarks: what Berth does against what its tools can do at all, in the same run. See README.md."""
