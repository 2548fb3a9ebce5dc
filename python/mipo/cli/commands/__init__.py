"""One file a command, each with a function `command`, which calls a stage and prints what became of it."""
