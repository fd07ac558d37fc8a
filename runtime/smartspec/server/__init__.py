"""HTTP: the OpenAI-compatible endpoint and the admin port. The only package that knows aiohttp."""
