"""HTTP: the OpenAI-compatible public port and the admin port. The only package that knows aiohttp and Prometheus."""
