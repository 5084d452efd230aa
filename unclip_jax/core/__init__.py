"""What all of the package uses and what depends on none of it: errors, configurations, files, the command line."""
