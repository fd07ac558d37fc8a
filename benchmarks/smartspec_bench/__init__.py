"""What the benchmarks `paper` and `peers` share: servers, load, prompts, statistics, and records."""
