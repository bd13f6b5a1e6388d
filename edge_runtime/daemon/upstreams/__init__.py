"""The servers that a daemon can send to: this project's own, or any with OpenAI's API."""
