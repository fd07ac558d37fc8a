"""Load generation: requests sent as told to any OpenAI-compatible server, timed by the client, and summed up."""
