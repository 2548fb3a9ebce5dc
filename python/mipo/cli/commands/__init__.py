"""One file per command, each with a function `command` that calls a stage and prints the outcome."""
