"""What tests of the server's engine share."""
