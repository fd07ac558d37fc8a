"""What the benchmark `engine` measures, one module a section, each with a `measure` and a `part` of the report."""
