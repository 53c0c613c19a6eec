"""Weights in and out: foreign layouts to OpenAI's names, which jclip reads."""
