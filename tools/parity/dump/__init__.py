"""What a device's engine returned, as a file that another machine judges."""
