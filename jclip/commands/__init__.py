"""What `jclip <word>` does, one module a word."""
