"""What every other part leans on: errors, the command line, paths, files, the console."""
