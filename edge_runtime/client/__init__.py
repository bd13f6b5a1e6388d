"""The device's end of the wire: requests to the server, retries, answers as they stream."""
