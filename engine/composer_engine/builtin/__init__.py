"""The model and the tasks that need no network: a tiny Qwen2 that adds digits, badly at first."""
