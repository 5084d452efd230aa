"""What every part of the package uses and that knows none of them: errors, configurations, files, the command line."""
