"""The demo: a ramp of real prompts against `smartspec-operator local`, watched, measured and judged."""
