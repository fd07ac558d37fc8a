"""The page: what this server is doing now and in the last minutes, and a box to try a prompt. No build step."""
