"""A model that runs elsewhere, behind an OpenAI-compatible server (https://platform.openai.com/docs/api-reference)."""
