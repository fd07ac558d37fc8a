"""SmartSpec runtime: an LLM server that decides, per request and per step, how much to speculate."""

__version__ = "0.1.0"
