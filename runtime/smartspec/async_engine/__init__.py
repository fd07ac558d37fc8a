"""The engine in a thread of its own: commands go in from the event loop, text comes out."""
